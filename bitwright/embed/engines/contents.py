"""What engines take of an index, part by part, and what of its codec they can express.

    score(q, i) = start(q) + f_i <asked(q), y_i>,      y_i = decode(codes_i)

Bits      y = w (2 b - 1), one bit per coordinate and one w for all. Packed most significant bit first, bit = (y > 0), filled up to
          whole bytes with zeros; a query is coded like a document, and Hamming distances are those of the codes
Planes    y = w_0 (2 b_0 - 1) + w_1 (2 b_1 - 1): two bits per coordinate whose four points mirror each other
Runs      y beside each other in runs of one width, sixteen points each: a product code with our points
Vectors   f y, with asked(q) as the query: the score but for start(q), which is the same for all documents

Documents that are known by text are so where an engine takes text; elsewhere they have the numbers of `Index.texts_of`. Nothing is
quantized again: codes that an engine cannot express are refused, with the codec that it can.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from bitwright.embed.book import POINTS, Book
from bitwright.embed.codec import Codec
from bitwright.embed.codefile import CodeFile
from bitwright.embed.index import Index
from bitwright.errors import BadRequest
from bitwright.progress import Progress, silent
from bitwright.terms.base import Json

PART = 1 << 15  # documents decoded at a time


class Part(NamedTuple):
    ids: Int64[Tensor, "n"]
    names: list[int] | list[str]  # text where documents are known by text
    coordinates: Float32[Tensor, "n dims"]  # y
    factor: Float32[Tensor, "n"]  # f, ones where the codec has none

    @property
    def bits(self) -> UInt8[np.ndarray, "n bytes"]:
        return packed(self.coordinates)

    @property
    def vectors(self) -> Float32[Tensor, "n dims"]:
        return self.factor[:, None] * self.coordinates


def parts(index: Index, progress: Progress = silent) -> Iterator[Part]:
    for rows in torch.arange(len(index)).split(PART):
        yield taken(index, rows)
        progress("writing", int(rows[-1]) + 1, len(index))


def sample(index: Index, count: int) -> Part:
    """Documents from all over, in order."""
    return taken(index, torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:count].sort().values)


def taken(index: Index, rows: Int64[Tensor, "n"]) -> Part:
    book = index.codec.book
    y = book.decode(index.codes.nibbles(rows)[:, : len(book.starts)])
    ids = index.names[rows]
    names = ids.tolist() if index.texts is None else index.texts[rows]
    return Part(ids, names, y, torch.ones(len(rows)) if index.factor is None else index.factor[rows].float())


def turned(codec: Codec, q: Float[Tensor, "q inp"]) -> Float32[Tensor, "q dims"]:
    """Queries for engines that hold coordinates or vectors."""
    return codec.asked(q).y


def signs(codec: Codec, q: Float[Tensor, "q inp"]) -> UInt8[np.ndarray, "q bytes"]:
    """The bits of queries, coded like documents, for engines that count differing bits."""
    return packed(codec.book.decode(codec.encode(q).nibbles))


def packed(y: Float32[Tensor, "n dims"]) -> UInt8[np.ndarray, "n bytes"]:
    return np.packbits(y.numpy() > 0, axis=1)


def planes(book: Book) -> list[float]:
    """[w_0] or [w_0, w_1] of a book that is one or two planes of bits; else nothing."""
    values = book.points.unique().double()
    width = {2: 4, 4: 2}.get(len(values), 0)
    if not width or width != run_width(book) or any(len(points.unique(dim=0)) != POINTS for points in book.points):
        return []
    if not torch.allclose(values, -values.flip(0), rtol=1e-4):
        return []
    largest, next_one = values[-1].item(), values[len(values) // 2].item()
    return [largest] if width == 4 else [(largest + next_one) / 2, (largest - next_one) / 2]


def run_width(book: Book) -> int:
    """Of runs of one width that lie beside each other from the first coordinate to the last; else 0."""
    width = int(book.widths[0])
    alike = (book.widths == width).all() and torch.equal(book.starts.long(), width * torch.arange(len(book.starts)))
    return width if alike and width * len(book.starts) == book.dims else 0


def binary(codec: Codec, engine: str) -> int:
    """How many bits a document has, filled up to whole bytes. Raises BadRequest where a code is not a bit per coordinate."""
    if len(planes(codec.book)) != 1:
        raise BadRequest(
            f"{engine} takes one bit per coordinate and {codec.name} is no such code; build with --codec rotated or itq, --bits 1."
        )
    return whole(codec)


def whole(codec: Codec) -> int:
    """A bit per coordinate, filled up to whole bytes."""
    return 8 * -(-codec.book.dims // 8)


def runs(codec: Codec, engine: str) -> tuple[int, int]:
    """How many runs, and how wide. Raises BadRequest where they are of several widths or lie over each other."""
    width = run_width(codec.book)
    if not width:
        raise BadRequest(
            f"{engine} takes runs of one width beside each other and those of {codec.name} are not; "
            "build with --codec rotated or itq, --bits 1, 2 or 4, or with --codec product and bits that divide the dimensions."
        )
    return len(codec.book.starts), width


def header(index: Index) -> dict[str, Json]:
    """What a file of these codes says of itself."""
    return CodeFile(index.codec, index.codes, index.factor, index.ids, index.texts, index.cells, index.about or {}).header()


def lists(index: Index) -> int:
    """Cells of a coarse partition: the square root of the documents."""
    return max(1, round(len(index) ** 0.5))


def library(name: str) -> Any:
    """Raises BadRequest where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        needed = name.partition(".")[0]
        raise BadRequest(f"This engine needs the library {needed}; install it (pip install 'bitwright[engines]').") from None
