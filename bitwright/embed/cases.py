"""What is checked: vectors with their codes, ours or those of other tools, and how these codes are meant to be read.

Codes of other tools are a matrix of bytes: bits packed eight to a byte, or an integer per coordinate. What they stand for is found
by least squares: a scale and an offset per coordinate or, where they are of another basis, a linear map. Codes that follow the
vectors only after a change of convention are read changed, and `changed` says how.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed.codec import Metric, vectors
from bitwright.embed.index import Index
from bitwright.embed.judging import exact
from bitwright.embed.sources import read
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import overlap

FOLLOWS = 0.3  # correlation of a code with its coordinate, below which it is of another basis
SAMPLE, ASKING = 8192, 128


@dataclass(frozen=True, eq=False)
class Case:
    """Vectors `x` row by row with their codes: `raw` numbers as they lie there, and `near`, what they stand for."""

    x: Float32[Tensor, "n d"]
    q: Float32[Tensor, "q d"]
    raw: Float32[Tensor, "n c"]
    near: Float32[Tensor, "n d"]
    bits: float  # per dimension
    metric: Metric  # as it is meant
    codes_metric: Metric  # as the codes can be compared
    k: int = 10
    changed: str = ""  # what had to be done to the codes
    plain: bool = False  # raw numbers are integers of coordinates
    scores: Float32[Tensor, "q n"] | None = None
    again: float | None = None  # the share of codes that are the same when the vectors are coded again

    @cached_property
    def truth(self) -> Tensor:
        return exact(self.x, self.q, self.k, self.metric)

    @cached_property
    def kept(self) -> Tensor:
        return overlap(exact(self.near, self.q, self.k, self.codes_metric), self.truth)


def given(
    file: Path | None, codes: Path | None, where: Path | None, queries: Path | None, scores: Path | None, metric: str | None, k: int
) -> Case:
    """From what a command names. Raises BadRequest for what is missing."""
    if where is None or (file is None) == (codes is None):
        raise BadRequest("A check takes --vectors and either a FILE of codes or --codes; name them.")
    if metric not in (None, *get_args(Metric)):
        raise BadRequest(f"There is no {metric!r} here; choose one of {', '.join(get_args(Metric))}.")
    x, q = whole(where), None if queries is None else whole(queries)
    if not 1 <= k < len(x):
        raise BadRequest(f"There are {len(x)} vectors and k is {k}; choose a smaller k.")
    if q is not None and q.shape[1] != x.shape[1]:
        raise BadRequest(f"Queries have {q.shape[1]} dimensions and vectors {x.shape[1]}; give both of one model.")
    made = None if scores is None else whole(scores)
    if file is not None:
        return of_file(Index.open(file), x, q, metric, k, made)  # type: ignore[arg-type]
    return of_codes(np.asarray(read(codes).rows), x, q, metric or "cosine", k, made)  # type: ignore[arg-type]


def whole(path: Path) -> Float[Tensor, "n d"]:
    source = read(path)
    return source[slice(0, len(source))]


def of_file(
    index: Index, x: Float[Tensor, "n d"], q: Float[Tensor, "q d"] | None, metric: Metric | None, k: int,
    scores: Float[Tensor, "asked coded"] | None = None,
) -> Case:  # fmt: skip
    """`x` are the vectors of the first documents. Raises BadRequest where there are more vectors than documents."""
    if len(x) > len(index):
        raise BadRequest(f"There are {len(x)} vectors for {len(index)} documents; give those of the first documents, in order.")
    rows, q, scores = picked(x, q, scores)
    codec, own, x = index.codec, index.codes_of(rows), vectors(x[rows], index.codec.dim, "ip")
    again = float((codec.encode(x).nibbles == own.nibbles).float().mean())
    case = Case(x, vectors(q, codec.dim, "ip"), own.nibbles.float(), codec.decode(own), codec.bits, codec.metric, codec.metric, k)
    return replace(case, metric=metric or codec.metric, again=again, scores=scores)


def of_codes(
    codes: np.ndarray, x: Float[Tensor, "n d"], q: Float[Tensor, "q d"] | None, metric: Metric, k: int,
    scores: Float[Tensor, "asked coded"] | None = None,
) -> Case:  # fmt: skip
    """Raises BadRequest for codes that are neither packed bits nor an integer per coordinate of these vectors."""
    n, d = x.shape
    if codes.dtype not in (np.uint8, np.int8) or codes.ndim != 2 or codes.shape[1] not in (d, -(-d // 8)) or len(codes) != n:
        raise BadRequest(
            f"Codes of type {codes.dtype} and shape {codes.shape} do not fit {n} vectors of {d} dimensions; "
            f"give bytes, {-(-d // 8)} (packed bits) or {d} (integers) a vector."
        )
    rows, asking, scores = picked(x, q, scores)
    x = vectors(x[rows], d, "ip")
    packed = codes.shape[1] != d
    ways = readings(codes[rows.numpy()], d, packed)
    found = {name: follows(raw, x) for name, raw in ways.items()}
    best = max(found, key=lambda name: float(found[name].mean()))
    first = next(iter(ways))
    if float(found[best].mean()) < float(found[first].mean()) + 0.05:
        best = first
    raw = ways[best]
    levels = 1.0 if packed else float(np.log2(max(2, np.median([len(c.unique()) for c in raw.T]))))
    aligned = float(found[best].mean()) >= FOLLOWS
    near = (normalize(2 * raw - 1) if packed else stretched(raw, x)) if aligned else mapped(raw, x)
    case = Case(x, vectors(asking, d, "ip"), raw, near, levels, metric, "cosine" if packed else metric, k, scores=scores)
    return replace(case, changed="" if best == first else best, plain=not packed)


def picked(x: Tensor, q: Tensor | None, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows from all over, in order; queries: those given, or vectors that are then no documents; scores of both."""
    if scores is not None and (q is None or scores.shape != (len(q), len(x))):
        raise BadRequest(f"Scores of shape {tuple(scores.shape)} need --queries, a row for each and {len(x)} columns.")
    rows = torch.linspace(0, len(x) - 1, min(len(x), SAMPLE)).long()
    if q is not None:
        return rows, q[:ASKING], None if scores is None else scores[:ASKING, rows]
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[:: max(8, len(rows) // ASKING)] = True
    return rows[~held], x[rows[held]], None


def readings(codes: np.ndarray, d: int, packed: bool) -> dict[str, Tensor]:
    """The ways to read these bytes, the plain one first; the others by what must be done to the codes."""
    if not packed:
        other = codes.view(np.uint8 if codes.dtype == np.int8 else np.int8)
        said = f"as bytes {'with' if other.dtype == np.int8 else 'without'} a sign"
        return {name: torch.from_numpy(c.astype(np.float32)) for name, c in (("", codes), (said, other))}
    found, whole = {}, codes.view(np.uint8)
    for order, said in (("big", ""), ("little", "with the bits of each byte reversed")):
        for flip, also in ((0, ""), (128, "after 128 is added to each byte (sentence-transformers: `binary`, not `ubinary`)"),
                           (255, "with every bit inverted")):  # fmt: skip
            bits = np.unpackbits(whole ^ np.uint8(flip), axis=1, bitorder=order)[:, :d]  # type: ignore[call-overload]
            found[", and ".join(filter(None, (said, also)))] = torch.from_numpy(bits.astype(np.float32))
    return found


def follows(raw: Float32[Tensor, "n d"], x: Float32[Tensor, "n d"]) -> Float32[Tensor, "d"]:
    """The correlation of every code with its coordinate; 0 for a code that never changes."""
    a, b = (y - y.mean(0) for y in (raw, x))
    size = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(size > 0, (a * b).sum(0) / size.clamp_min(1e-30), 0)


def stretched(raw: Float32[Tensor, "n d"], x: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
    a = raw - raw.mean(0)
    return x.mean(0) + a * ((a * (x - x.mean(0))).sum(0) / a.square().sum(0).clamp_min(1e-30))


def mapped(raw: Float32[Tensor, "n c"], x: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
    """By the linear map that is best for every other vector, so that the others can judge it."""
    a, b = raw - raw.mean(0), x - x.mean(0)
    A, B = a[::2].double(), b[::2].double()
    gram = A.T @ A
    ridge = torch.eye(len(gram), dtype=torch.float64) * (0.01 * gram.diagonal().mean() + 1e-9)
    return x.mean(0) + a @ torch.linalg.solve(gram + ridge, A.T @ B).float()
