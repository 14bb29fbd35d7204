"""INCOME: what to adapt a retriever with codes on, made from the passages of its new domain alone (arXiv 2205.11498).

    passages -> synthesize -> mine -> (label) -> bpr.Bpr.train, or jpq.train

`synthesize`  queries that a generator writes for each passage (GenQ); the generator is any function of a text
`mine`        hard negatives: what other retrievers find for a query beside its passage
`label`       a teacher's score of the positive less that of each negative (GPL), by any function of two texts

Codes learned together with a query encoder are fitted to the domain of their training queries, and lose more than floats do in
another; no human label is needed to mend that. Generator, miners and teacher are given, as none of them belongs to compression: in
the paper T5, three dense retrievers, a cross-encoder. Without a generator the first sentence of a passage stands for a query.
The miners should be others than the model that is tuned; passages wrongly mined hurt without a teacher, less with one.
"""

import math
import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from bitwright.embed.bpr import Pairs
from bitwright.errors import BadRequest

Generate = Callable[[str, int], Sequence[str]]  # so many queries for a passage
Retrieve = Callable[[Sequence[str], int], Int64[Tensor, "q k"]]  # rows of the best k passages for each query
Judge = Callable[[Sequence[str], Sequence[str]], Float32[Tensor, "n"]]  # how relevant passage i is to query i

ENOUGH = 250_000  # queries for a corpus
FEWEST = 3  # for a passage


def leading(passage: str, count: int = 1) -> list[str]:
    """Its first sentences, up to `count` of them: queries without a generator."""
    return re.split(r"(?<=[.!?])\s+", passage.strip())[:count]


def synthesize(
    passages: Sequence[str], generate: Generate = leading, enough: int = ENOUGH, seed: int = 0
) -> tuple[list[str], Pairs]:
    """Queries, and the passage of each: at least three for a passage, `enough` for all; of a larger corpus a sample is used."""
    used = math.ceil(enough / FEWEST)
    each = FEWEST if len(passages) >= used else math.ceil(enough / max(1, len(passages)))
    rows = torch.randperm(len(passages), generator=torch.Generator().manual_seed(seed))[:used].sort().values.tolist()
    made = [(query, row) for row in rows for query in generate(passages[row], each)]
    if not made:
        raise BadRequest(f"The generator wrote no query for any of {len(rows)} passages; give passages with text.")
    positives = torch.tensor([row for _, row in made])
    return [query for query, _ in made], Pairs(torch.arange(len(made)), positives, torch.empty(len(made), 0, dtype=torch.int64))


def mine(queries: Sequence[str], pairs: Pairs, retrievers: Sequence[Retrieve], k: int = 50) -> Pairs:
    """The pairs with the best `k` of every retriever as negatives, their own passage left out."""
    found = [retrieve([queries[row] for row in pairs.queries.tolist()], k + 1) for retrieve in retrievers]
    return Pairs(pairs.queries, pairs.positives, torch.cat([without(ids, pairs.positives) for ids in found], 1))


def without(ids: Int64[Tensor, "n kk"], own: Int64[Tensor, "n"]) -> Int64[Tensor, "n k"]:
    """All but the own passage, or all but the last where that is not among them."""
    kept = ids != own[:, None]
    kept[kept.all(1), -1] = False
    return ids[kept].view(len(ids), ids.shape[1] - 1)


def label(queries: Sequence[str], passages: Sequence[str], pairs: Pairs, judge: Judge, spread: float | None = None) -> Pairs:
    """The pairs with the teacher's margins. `spread`: what the margins' standard deviation becomes (None: as the teacher has it).
    A teacher of logits may be far from the scale of the model's own products, and squared errors with it."""
    asked = [queries[row] for row in pairs.queries.tolist()]
    score = lambda rows: judge(asked, [passages[row] for row in rows.tolist()])  # noqa: E731
    own = score(pairs.positives)
    margins = torch.stack([own - score(rows) for rows in pairs.negatives.T], 1)
    scale = 1.0 if spread is None else spread / float(margins.std())
    return Pairs(pairs.queries, pairs.positives, pairs.negatives, scale * margins)
