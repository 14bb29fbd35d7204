"""BPR: an encoder that learns to be read by its signs (arXiv 2106.00882; as in INCOME, arXiv 2205.11498; card: income).

    h(e) = tanh(e sqrt(1 + gamma step)) -> sign(e)          at inference e < 0 is -1, all else 1
    min   softmax of <e_q, h(e_p)> over the passages of the batch    +    mean of [margin - <h_q, h_p> + <h_q, h_other>]_+

The first term trains the re-ranking (float query, binary passage), the second the candidates (binary both). A search has those two
stages: by differing bits, then by the float query on the same codes. With `margins` (GPL: the differences of a teacher's scores of
positive and negative) the first term is their squared error instead. The slope is a function of the step that the caller passes, so
judging does not move it and a run that goes on does so at its own step.
Differs from the release, whose GPL loss reads two single rows of the passages where it means two blocks: here the first B rows are
the positives and the next B the negatives. The best encoder on held-out pairs, read by its signs, is kept, the start among them.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from bitwright.embed.book import Book
from bitwright.embed.codec import Codec
from bitwright.embed.index import Hits, Index
from bitwright.embed.learning import descend, split
from bitwright.embed.views import Same
from bitwright.errors import BadRequest
from bitwright.kernels.scanning import scan, score
from bitwright.training.loop import Training

GAMMA = 0.1  # of HashNet's continuation: the slope is 32 after 10,000 steps, 118 after 140,000


def soft(e: Float32[Tensor, "b dim"], step: int) -> Float32[Tensor, "b dim"]:
    return torch.tanh(e * (1 + GAMMA * step) ** 0.5)


def signs(e: Float32[Tensor, "b dim"]) -> Float32[Tensor, "b dim"]:
    return torch.where(e < 0, -1.0, 1.0)


def dense(q: Float32[Tensor, "b dim"], passages: Float32[Tensor, "p dim"]) -> Float32[Tensor, ""]:
    """Passage i is the one of query i; all others are not."""
    return cross_entropy(q @ passages.T, torch.arange(len(q)))


def taught(q: Float32[Tensor, "b dim"], passages: Float32[Tensor, "p dim"], margins: Float32[Tensor, "b"]) -> Float32[Tensor, ""]:
    """Passage i is the positive of query i, passage b + i its negative."""
    positive, negative = passages[: len(q)], passages[len(q) : 2 * len(q)]
    return mse_loss((q * (positive - negative)).sum(1), margins)


def binary(q: Float32[Tensor, "b dim"], passages: Float32[Tensor, "p dim"], margin: float = 2.0) -> Float32[Tensor, ""]:
    products = q @ passages.T
    behind = (margin - products.diagonal()[:, None] + products).relu()
    others = ~torch.eye(*products.shape, dtype=torch.bool)
    return behind[others].sum() / others.sum().clamp_min(1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """What to learn from: of every pair the row of its query, of its positive, of its negatives, and the teacher's score of the
    positive less that of each negative (None: negatives are wrong)."""

    queries: Int64[Tensor, "n"]
    positives: Int64[Tensor, "n"]
    negatives: Int64[Tensor, "n m"]
    margins: Float32[Tensor, "n m"] | None = None

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True, eq=False)
class Bpr:
    """Trained. Both encoders may be one; they take rows of features and give `dim` numbers."""

    queries: nn.Module
    passages: nn.Module

    @classmethod
    def train(
        cls,
        queries: nn.Module,
        passages: nn.Module,
        q: Float[Tensor, "nq ..."],
        p: Float[Tensor, "np ..."],
        pairs: Pairs,
        rate: float = 1e-3,
        batch: int = 64,
        held: float = 0.1,
        how: Training = Training(steps=1000, warm=0.05),
    ) -> "Bpr":
        """New encoders from the given ones, on features of queries `q` and passages `p`. A step takes one negative per pair."""
        bpr = cls(*deepcopy((queries, passages)))
        learned, judging = split(len(pairs), held, how.seed)

        def loss(rows: Tensor, step: int, read: bool = False) -> Tensor:
            turn = (rows + step) % max(1, pairs.negatives.shape[1])
            chosen = [pairs.positives[rows], *([pairs.negatives[rows, turn]] if pairs.negatives.numel() else [])]
            e, found = bpr.queries(q[pairs.queries[rows]]), bpr.passages(p[torch.cat(chosen)])
            own, codes = (signs(e), signs(found)) if read else (soft(e, step), soft(found, step))
            first = dense(e, codes) if pairs.margins is None else taught(e, codes, pairs.margins[rows, turn])
            return first + binary(own, codes)

        groups = [{"params": list(dict.fromkeys([*bpr.queries.parameters(), *bpr.passages.parameters()])), "lr": rate}]
        judge = lambda: float(sum(loss(part, 0, True) for part in judging.tensor_split(-(-len(judging) // batch))))  # noqa: E731
        descend(groups, lambda rows, step: loss(learned[rows], step), judge, len(learned), batch, how, clip=2.0)
        return bpr

    @torch.no_grad()
    def index(self, p: Float[Tensor, "n ..."], ids: Int64[Tensor, "n"] | None = None) -> Index:
        """Of passages, a bit per dimension."""
        e = self.passages(p)
        return Index.build(codec(e.shape[1]), e, ids)

    @torch.no_grad()
    def search(self, index: Index, q: Float[Tensor, "q ..."], k: int = 10, candidates: int = 1000) -> Hits:
        """The `candidates` passages of the fewest differing bits, ranked by the float query. Raises BadRequest where there are
        fewer candidates than k."""
        if not 1 <= k <= min(candidates, len(index)):
            raise BadRequest(f"{k} of {candidates} candidates among {len(index)} passages cannot be found; choose a smaller k.")
        e = self.queries(q)
        rows = scan(index.codes, index.codec.book.tables(signs(e)), min(candidates, len(index))).rows
        scores, order = score(index.codes, index.codec.book.tables(e), rows).sort(dim=1, descending=True, stable=True)
        return Hits(index.names[rows.gather(1, order[:, :k])], scores[:, :k], len(index), index.codes.data.numel())


def codec(dim: int) -> Codec:
    """One bit per dimension, read as -1 and 1. Raises BadRequest where dimensions do not fill nibbles."""
    if dim % 4:
        raise BadRequest(f"{dim} signs do not fill nibbles of four; let the encoder give a multiple of four numbers.")
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    book = Book.listed([(start, corners) for start in range(0, dim, 4)], dim)
    return Codec(Same(dim), book, "ip", "none", "bpr")
