"""Documents rounded for those who will ask: vectors are rows of weights, queries are their inputs, and roundings are the same.

    min over codes   E_q (<q, x> - <q, x^>)^2 = (y - y^) H (y - y^)^T,      H = E[a a^T] over queries a, as the view asks them

where nearest points minimise it only for H = 1. Any rounding of one matrix will do (GPTQ, QuantEase, a chain of both); the grid
is that of the codec, so codes, file and search do not change. Lengths in the factor of a vector are those under H. For codecs
whose points are those of single coordinates: `rotated` and `itq` of 1, 2 and 4 bits. Choosing codes costs dims^2 per vector
instead of dims. It pays where queries are few directions, unlike documents. Products are nearer to the floats everywhere, but
where queries are like documents a top 10 is not, and at one bit it is worse.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bitwright.calibrate.stats import Gram, Known
from bitwright.coder import Band, Coder
from bitwright.embed.book import POINTS, Book
from bitwright.embed.codec import CHUNK, Codec, Codes, vectors
from bitwright.errors import BadRequest
from bitwright.grids.points import Points
from bitwright.layout import Layout
from bitwright.linalg import root
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import decode


def moments(codec: Codec, queries: Float[Tensor, "q inp"]) -> Float32[Tensor, "dims dims"]:
    """H, from sample queries."""
    gram = Gram(codec.view.dims)
    gram.add(codec.asked(queries).y)
    return gram.value()


def encode(codec: Codec, x: Float[Tensor, "n inp"], H: Float32[Tensor, "dims dims"], rounding: Rounding = GPTQ(damp=1e-3)) -> Codes:
    """Codes of this codec. Raises BadRequest for a codec whose points are not those of single coordinates, and for bad vectors."""
    levels, known, L = grid(codec.book), Known({"gram": H}), root(H)
    nibbles, factors = [], []
    for part in vectors(x, codec.dim, codec.metric).split(CHUNK):
        y = codec.view.seen(part)
        band = Band(Points(levels.shape[1], dtype="float32"), Layout(None, 1))
        near = decode(rounding(y, Coder((len(y), len(levels)), (band,), ({"points": levels},)), known))
        nibbles.append(codec.book.encode(near))
        factors.append(codec.factor(y, near) if codec.scale == "unit" else codec.factor(y @ L, near @ L))
    return Codes(torch.cat(nibbles), None if codec.scale == "none" else torch.cat(factors))


def grid(book: Book) -> Float32[Tensor, "dims levels"]:
    """The points of every coordinate, where a nibble is free to combine them."""
    found: list[Tensor] = []
    for start, width, points in zip(book.starts.tolist(), book.widths.tolist(), book.points):
        own = [column.unique() for column in points[:, :width].T]
        sizes = [len(values) for values in own]
        alike = start == len(found) and sizes == sizes[:1] * len(own) and sizes[0] ** len(own) == POINTS
        if not alike or not torch.equal(torch.cartesian_prod(*own).view(POINTS, -1), points[:, :width]):
            raise BadRequest("These codes are not made of single coordinates; use a codec `rotated` or `itq` of 1, 2 or 4 bits.")
        found += own
    return torch.stack(found)
