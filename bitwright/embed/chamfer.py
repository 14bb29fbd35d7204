"""Sets of vectors, and how alike two of them are: every vector of a query with the vector of the document that fits it best.

    Chamfer(Q, P) = sum over q in Q of max over p in P of <q, p>            (MaxSim, late interaction)

Exact: what encodings of sets (`muvera.py`) are judged by, and what their candidates are ranked by again. Ball carving (MUVERA,
arXiv 2405.19504, appendix) shortens a query first: a vector takes all others that are near to it with it, as their sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from bitwright.errors import BadRequest

HELD = 1 << 25  # products held at a time


@dataclass(frozen=True, eq=False)
class Sets:
    """`n` sets in one matrix: set i is rows edges[i] to edges[i + 1] - 1, and may be empty."""

    tokens: Float[Tensor, "t d"]
    edges: Int64[Tensor, "edges"]

    @classmethod
    def of(cls, sets: Sequence[Float[Tensor, "_ d"]]) -> "Sets":
        sizes = torch.tensor([0, *map(len, sets)], device=sets[0].device)
        return cls(torch.cat(list(sets)), sizes.cumsum(0))

    def __post_init__(self) -> None:
        if int(self.edges[0]) or int(self.edges[-1]) != len(self.tokens) or (self.sizes < 0).any():
            raise BadRequest(f"The edges do not cut {len(self.tokens)} vectors into sets; begin at 0, ascend, end at their number.")

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def sizes(self) -> Int64[Tensor, "n"]:
        return self.edges.diff()

    @cached_property
    def owner(self) -> Int64[Tensor, "t"]:
        """The set of every vector."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.edges.device), self.sizes)

    def part(self, first: int, last: int) -> "Sets":
        """Sets first to last - 1."""
        edges = self.edges[first : last + 1]
        return Sets(self.tokens[int(edges[0]) : int(edges[-1])], edges - edges[0])

    def take(self, chosen: Int64[Tensor, "c"]) -> "Sets":
        sizes = self.sizes[chosen]
        edges = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        shift = torch.repeat_interleave(self.edges[chosen] - edges[:-1], sizes)
        return Sets(self.tokens[torch.arange(len(shift), device=shift.device) + shift], edges)


def chamfer(queries: Sets, documents: Sets) -> Float32[Tensor, "q n"]:
    """Every query with every document. An empty document fits nothing: 0, as its encoding has it."""
    scores = torch.zeros(len(queries), len(documents), device=queries.tokens.device)
    step = max(1, HELD // max(1, len(documents.tokens)))
    for asked, owner in zip(queries.tokens.float().split(step), queries.owner.split(step)):
        products = asked @ documents.tokens.float().T
        best = products.new_zeros(len(asked), len(documents))
        best.scatter_reduce_(1, documents.owner.expand(len(asked), -1), products, "amax", include_self=False)
        scores.index_add_(0, owner, best)
    return scores


def ranked(
    queries: Sets, documents: Sets, candidates: Int64[Tensor, "q c"], k: int
) -> tuple[Int64[Tensor, "q k"], Float32[Tensor, "q k"]]:
    """The best k of every query's own candidates, best first, by exact Chamfer; a candidate -1 is none (id -1, score -inf)."""
    scores = torch.full(candidates.shape, -torch.inf, device=queries.tokens.device)
    for i, own in enumerate(candidates):
        there = own >= 0
        scores[i, there] = chamfer(queries.part(i, i + 1), documents.take(own[there]))[0]
    best, order = scores.sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, order)[:, :k], best[:, :k]


def carved(sets: Sets, tau: float = 0.7) -> Sets:
    """Ball carving: again and again the first vector left and all with <., .> >= tau to it leave, and their sum stays.

    All sets at a time: a round carves one ball of each, so that there are as many rounds as the largest set has balls.
    """
    place = torch.arange(len(sets.tokens), device=sets.tokens.device)
    left, ball = place, torch.full_like(place, -1)  # ball: the vector that a vector goes with
    while len(left):
        owner = sets.owner[left]
        first = torch.full((len(sets),), len(place), device=place.device).scatter_reduce_(0, owner, left, "amin")[owner]
        near = ((sets.tokens[left] * sets.tokens[first]).sum(1) >= tau) | (left == first)
        ball[left[near]] = first[near]
        left = left[~near]
    sums = torch.zeros_like(sets.tokens).index_add_(0, ball, sets.tokens)
    seed = ball == place
    edges = torch.nn.functional.pad(torch.bincount(sets.owner[seed], minlength=len(sets)).cumsum(0), (1, 0))
    return Sets(sums[seed], edges)
