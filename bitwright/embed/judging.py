"""Codecs beside each other on one's own vectors: how much of the float search each keeps, for how many bytes.

Codecs are fitted on a sample of the documents; all documents are searched. Without judgements the measure is the overlap with the
float top k; with them nDCG and its difference from the float search, paired over queries. The recommendation is in words, and
says so where codes without training do as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from bitwright.embed import codecs
from bitwright.embed.codec import Codec, Metric, vectors
from bitwright.embed.index import Index
from bitwright.evaluation.retrieval import Difference, Gains, difference, ndcg, overlap
from bitwright.progress import Progress, silent
from bitwright.terms.base import Json

CLOSE = 0.01
PLAIN = "rotated"  # what needs no training


@dataclass(frozen=True)
class Line:
    """One codec. `bytes` per vector with its factor, `book` of the codec itself; `against`: nDCG minus that of floats."""

    name: str
    bits: float
    bytes: float
    book: int
    overlap: float
    ndcg: float | None
    against: Difference | None


@dataclass(frozen=True)
class Judged:
    k: int
    documents: int
    queries: int
    dim: int
    metric: Metric
    float_ndcg: float | None
    lines: tuple[Line, ...]
    per_query: dict[str, tuple[float, ...]]  # what was measured, codec by codec

    def to_dict(self) -> dict[str, Json]:
        return asdict(self)

    def advice(self) -> Iterator[str]:
        """A sentence per width: which codec, and whether training earns it anything."""
        for bits in dict.fromkeys(line.bits for line in self.lines):
            here = {line.name: line for line in self.lines if line.bits == bits}
            best = max(here.values(), key=self.worth)
            plain = here.get(PLAIN)
            if plain is None or best is plain:
                yield f"{bits:g} bits: {best.name}, {best.bytes:.0f} bytes per vector."
                continue
            gain = difference(*(torch.tensor(self.per_query[f"{line.name}-{bits:g}"]).double() for line in (plain, best)))
            if gain.value < CLOSE or gain.low <= 0:
                near = f"{PLAIN} is within {max(gain.value, 0):.3f} of {best.name}"
                yield f"{bits:g} bits: {near}: codes without training do, and so does the quantizer that an engine has built in."
            else:
                yield f"{bits:g} bits: {best.name}, {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] against {PLAIN}."

    def worth(self, line: Line) -> float:
        return line.overlap if line.ndcg is None else line.ndcg


def exact(x: Float[Tensor, "n inp"], q: Float[Tensor, "q inp"], k: int, metric: Metric) -> Int64[Tensor, "q k"]:
    """The top k of the floats."""
    return (vectors(q, None, metric, "query") @ vectors(x, None, metric).T).topk(k).indices


def judge(
    x: Float[Tensor, "n inp"],
    q: Float[Tensor, "q inp"],
    bits: Sequence[float],
    names: Sequence[str] = ("additive", PLAIN),
    gains: Gains | None = None,
    k: int = 10,
    metric: Metric = "cosine",
    sample: int = 65536,
    progress: Progress = silent,
) -> Judged:
    """`gains` are by row of x. Raises BadRequest where a codec cannot be fitted."""
    best = exact(x, q, k, metric)
    floats = None if gains is None else ndcg(best, gains)
    lines, per_query, done = [], {}, 0
    for width in bits:
        for name in names:
            codec = codecs.fit(x[:: max(1, len(x) // sample)], width, name, progress, metric=metric)
            index = Index.build(codec, x)
            ids = index.search(q, k, oversample=4.0).ids
            shared = overlap(ids, best)
            scored = None if gains is None else ndcg(ids, gains)
            lines.append(line(name, width, codec, index, shared, scored, floats))
            per_query[f"{name}-{width:g}"] = tuple((shared if scored is None else scored).tolist())
            progress("codecs", done := done + 1, len(bits) * len(names))
    mean = None if floats is None else float(floats.nanmean())
    return Judged(k, len(x), len(q), x.shape[1], metric, mean, tuple(lines), per_query)


def line(
    name: str, bits: float, codec: Codec, index: Index, shared: Float64[Tensor, "q"],
    scored: Float64[Tensor, "q"] | None, floats: Float64[Tensor, "q"] | None,
) -> Line:  # fmt: skip
    book = sum(t.numel() * t.element_size() for t in codec.tensors().values())
    each = 4 * len(codec.book.starts) / 8 + (0 if index.factor is None else 2)
    if scored is None or floats is None:
        return Line(name, bits, each, book, float(shared.mean()), None, None)
    return Line(name, bits, each, book, float(shared.mean()), float(scored.nanmean()), difference(floats, scored))
