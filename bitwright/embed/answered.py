"""An index taught by queries with known answers: the same codes under a codec that finds more, or the index as it was.

    queries with an answer -> learned from 64 in 100, chosen by 16 (`jpq.py`), told by 20 that took no part:
    mean reciprocal rank of the first answer before and after, and the interval of the difference

What is told is so no more flattering than a test set: the state that was best on some queries is measured on others. An answer
is every document with a gain above 0; how large it is does not count.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.jpq import Jpq
from bitwright.embed.learning import split
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import Difference, Gains, difference, reciprocal_rank
from bitwright.progress import Progress, silent
from bitwright.training.loop import Training

FEWEST, MOST = 20, 1000  # queries to learn from; to judge or tell by
SHARE = 0.2
DEPTH = 200  # results among which an answer counts


@dataclass(frozen=True, eq=False)
class Learned:
    """`queries` told `before` and `after`; none of them was learned from or chosen by."""

    index: Index
    queries: int
    before: float
    after: float
    gain: Difference

    def said(self) -> str:
        ranks = f"{self.before:.4f} -> {self.after:.4f}, {self.gain.value:+.4f} [{self.gain.low:+.4f}, {self.gain.high:+.4f}]"
        chance = ", which may be chance" if self.gain.low <= 0 < self.gain.value else ""
        return f"mean reciprocal rank of {self.queries} held-out queries {ranks}{chance}"


def learn(
    index: Index,
    q: Float[Tensor, "q inp"],
    gains: Gains,
    rates: tuple[float, float] = (2e-4, 5e-4),
    how: Training = Training(steps=500, warm=0.05),
    progress: Progress = silent,
) -> Learned:
    """`gains`: of the rows of the index, for every query; `rates` as in Jpq.train, larger ones for many queries. Raises BadRequest
    for bad vectors, and where too few queries have an answer."""
    q, known = index.codec.queries(q), answers(gains)
    some = (known >= 0).any(1)
    if (count := int(some.sum())) < FEWEST:
        raise BadRequest(f"{count} queries have an answer in the index, too few to learn from; give {FEWEST}, better hundreds.")
    q, known = q[some], known[some]
    rest, told = split(len(q), share(len(q)), how.seed)
    codes = index.codes_of(torch.arange(len(index)))
    held = share(len(rest))
    found = Jpq.train(
        index.codec, codes, q[rest], known[rest], results=DEPTH, rates=rates, held=held, how=how, progress=progress
    ).codec

    def ranks(codec: Codec) -> Tensor:
        hits = Index(codec, index.codes, index.factor).search(q[told], min(DEPTH, len(index)))
        return reciprocal_rank(hits.ids, known[told])

    before, after = ranks(index.codec), ranks(found)
    learned = Learned(index, len(told), float(before.mean()), float(after.mean()), difference(before, after))
    about = {name: value for name, value in (index.about or {}).items() if name != "measured"}  # of the codec that it was
    about |= {"trained_on": hashlib.sha256(q[rest].numpy().tobytes()).hexdigest()[:16], "trained": learned.said()}
    return replace(learned, index=replace(index, codec=found, about=about))


def answers(gains: Gains) -> Int64[Tensor, "q several"]:
    """Rows of documents, filled up with -1."""
    rows = [torch.tensor([row for row, gain in judged.items() if gain > 0], dtype=torch.int64) for judged in gains]
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def share(queries: int) -> float:
    return min(SHARE, MOST / queries)
