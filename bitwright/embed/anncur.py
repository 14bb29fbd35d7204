"""ANNCUR: a slow scorer of (query, item) as an index of vectors (arXiv 2210.12579; after it ADACUR, 2305.02996; card: anncur).

    M ~ C U R,   R = scores of k_q anchor queries with all items,  C = of any query with k_i anchor items,  U = pinv(R[:, anchors])

A new query costs k_i calls of the scorer, then all its scores are products. With R[:, anchors] = P S V^T the inverse V S^-1 P^T is
shared out: a query is e_q V S^-1, white over anchor queries, an item P^T r. The paper stores U R whole; the products are the same,
but whitened, so that codes lose alike in every direction. Singular values below `rcond` times the largest are dropped, and their
coordinates with them.
Where k_i comes near k_q the smallest singular values are noise and the plain inverse blows up: `fit` chooses (k_i, rcond) for a
budget of calls by anchor queries held out in turns, and takes the plain inverse only where k_i <= k_q / 2 or k_i >= 2 k_q.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from bitwright.embed import codecs
from bitwright.embed.codec import vectors
from bitwright.embed.index import Index
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import overlap

Scorer = Callable[[Int64[Tensor, "q c"]], Float[Tensor, "q c"]]  # row j: query j with those items; larger is better
PLAIN = 1e-15
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of a budget that anchors may take
CUTS = (PLAIN, 3e-4, 1e-3, 3e-3, 1e-2)
FOLDS = 4


class Ranked(NamedTuple):
    """Best first, exact scores. `calls` of the scorer per query."""

    ids: Int64[Tensor, "q k"]
    scores: Float32[Tensor, "q k"]
    calls: int


@dataclass(frozen=True, eq=False)
class AnnCur:
    """`anchors` are the items that a query is scored with; the maps bring its scores, and an item's, to `r` coordinates."""

    anchors: Int64[Tensor, "i"]
    query_map: Float64[Tensor, "i r"]
    item_map: Float64[Tensor, "a r"]
    rcond: float

    @classmethod
    def of(cls, R: Float[Tensor, "a n"], anchors: Int64[Tensor, "i"], rcond: float = PLAIN) -> "AnnCur":
        """From the scores of anchor queries with all items."""
        left, sizes, right = torch.linalg.svd(R[:, anchors].double(), full_matrices=False)
        kept = sizes > rcond * sizes[:1]
        return cls(anchors, right[kept].T / sizes[kept], left[:, kept], rcond)

    @classmethod
    def fit(cls, R: Float[Tensor, "a n"], budget: int, k: int = 10, seed: int = 0) -> "AnnCur":
        """For `budget` calls per query, anchors included, and the best `k`. Raises BadRequest for scores or a budget too small."""
        queries, items = R.shape
        if queries < 2 * FOLDS or not k < budget <= items:
            raise BadRequest(
                f"{queries} anchor queries and {budget} calls for the best {k} of {items} are too few or too many; give at least "
                f"{2 * FOLDS} queries and {k + 1} to {items} calls."
            )
        order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
        counts = sorted({min(max(1, round(share * budget)), budget - k) for share in SHARES})
        choices = [(i, cut) for i in counts for cut in CUTS if cut > PLAIN or i <= queries / 2 or i >= 2 * queries]
        held = torch.arange(queries) % FOLDS

        def found(choice: tuple[int, float]) -> float:
            turns = []
            for fold in range(FOLDS):
                cur, asked = cls.of(R[held != fold], order[: choice[0]], choice[1]), R[held == fold].double()
                estimates = cur.queries(asked[:, cur.anchors]) @ cur.items(R[held != fold]).T
                turns.append(overlap(within(asked, estimates, cur.anchors, budget, k), asked.topk(k).indices))
            return float(torch.cat(turns).mean())

        count, cut = max(choices, key=found)
        return cls.of(R, order[:count], cut)

    def items(self, R: Float[Tensor, "a n"]) -> Float32[Tensor, "n r"]:
        """Vectors of items, old or new, from their scores with the anchor queries."""
        return (R.T.double() @ self.item_map).float()

    def queries(self, scores: Float[Tensor, "q i"]) -> Float32[Tensor, "q r"]:
        """Vectors of queries from their scores with the anchor items."""
        return (scores.double() @ self.query_map).float()

    def index(self, R: Float[Tensor, "a n"], bits: float = 8.0) -> Index:
        """All items as codes; ids are columns of R. More are added by `index.add(cur.items(columns))`."""
        x = self.items(R)
        return Index.build(codecs.fit(x, bits, "rotated", metric="ip"), x)

    def search(self, index: Index, scorer: Scorer, queries: int, k: int, budget: int) -> Ranked:
        """The best k of the anchors and of as many others as the budget leaves, all of them scored exactly.
        Raises BadRequest where the budget does not go beyond the anchors."""
        more = min(budget, len(index)) - len(self.anchors)
        if more < 1 or k > more + len(self.anchors):
            raise BadRequest(f"A budget of {budget} calls, {len(self.anchors)} of them for anchors, does not give {k}; raise it.")
        anchors = self.anchors.expand(queries, -1)
        first = scorer(anchors)
        others = torch.ones(len(index), dtype=torch.bool)
        others[self.anchors] = False
        found = index.search(self.queries(vectors(first, None, "ip", "query")), more, allowed=others).ids
        ids, scores = torch.cat([anchors, found], 1), torch.cat([first, scorer(found)], 1).float()
        best = scores.topk(k)
        return Ranked(ids.gather(1, best.indices), best.values, ids.shape[1])


def within(
    scores: Float[Tensor, "q n"], estimates: Float[Tensor, "q n"], anchors: Int64[Tensor, "i"], budget: int, k: int
) -> Int64[Tensor, "q k"]:
    """What a search finds where all true scores are known."""
    seen = estimates.double().index_fill(1, anchors, torch.inf).topk(budget).indices
    return seen.gather(1, scores.gather(1, seen).topk(k).indices)


def adaptive(
    R: Float[Tensor, "a n"], scorer: Scorer, queries: int, k: int, budget: int, rounds: int = 5, rcond: float = 1e-3, seed: int = 0
) -> Ranked:
    """ADACUR: anchors of every query's own, in rounds. The first are drawn; the next are the items of the best estimates so far,
    from the combination of anchor queries that has the scores seen. Dearer (a fit per query and round), and better at the very top.
    """
    wide = R.double()
    shares = [budget * (i + 1) // rounds - budget * i // rounds for i in range(rounds)]
    ids = torch.randperm(R.shape[1], generator=torch.Generator().manual_seed(seed))[: shares[0]].expand(queries, -1)
    scores = scorer(ids).double()
    for share in shares[1:]:
        weights = (torch.linalg.pinv(wide.T[ids], rtol=rcond) @ scores[:, :, None])[:, :, 0]
        fresh = (weights @ wide).scatter(1, ids, -torch.inf).topk(share).indices
        ids, scores = torch.cat([ids, fresh], 1), torch.cat([scores, scorer(fresh).double()], 1)
    best = scores.topk(k)
    return Ranked(ids.gather(1, best.indices), best.values.float(), budget)
