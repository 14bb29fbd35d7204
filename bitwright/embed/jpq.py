"""JPQ: the points of a code, and its queries, trained for what the documents are asked (arXiv 2108.00644; card: income).

    min over points, encoder   sum over results of |1/rank_+ - 1/rank_-| log(1 + exp(s_- - s_+)),     s = <E(q), decode(c)>

Codes c are those of the codec before training and never change; results are found, in every step, by the index as it then is, so
the negatives are those that a search would show. The loss is `ranked`, or `taught`: the squared error of s_+ - s_- to a teacher's.
Any `Codec` will do in place of OPQ: its map and its factors stay, its book moves, and keeps the points that codes are chosen by
(`Book.chosen`): new documents are coded as the old ones were, and an index of the trained codec is like any other.
Differs from the paper: points and encoder are the best by the reciprocal rank on held-out queries, the start among them; `Steer`, a
map that is the identity at first, where no encoder of texts is given; `sharpness` stretches scores, since cosines are short.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.functional import softplus

from bitwright.embed.codec import Codec, Codes
from bitwright.embed.index import Index
from bitwright.embed.learning import descend, quiet, split
from bitwright.kernels.scanning import Blocked
from bitwright.training.loop import Training

# of scores, which of them are positives', the rows of the queries, the rows of the documents (the found ones in their order)
Loss = Callable[[Float32[Tensor, "b c"], Bool[Tensor, "b c"], Int64[Tensor, "b"], Int64[Tensor, "b c"]], Float32[Tensor, ""]]
Teacher = Callable[[Int64[Tensor, "b"], Int64[Tensor, "b c"]], Float32[Tensor, "b c"]]


class Steer(nn.Module):
    """q + MLP(q), the MLP nothing at first."""

    def __init__(self, dim: int, hidden: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.change = quiet(dim, hidden, dim, seed)

    def forward(self, q: Float[Tensor, "q dim"]) -> Float32[Tensor, "q dim"]:
        found: Tensor = q.float() + self.change(q.float())
        return found


def ranked(cut: int = 200) -> Loss:
    """Every pair of a positive and another counts by what a change of their places would be worth: beyond rank `cut`, nothing."""

    def loss(scores: Tensor, positive: Tensor, rows: Tensor, documents: Tensor) -> Tensor:
        rank = torch.arange(1, scores.shape[1] + 1)
        worth = torch.where(rank <= cut, 1 / rank, 0.0)
        pair = positive[:, :, None] & ~positive[:, None, :] & scores.isfinite()[:, :, None] & scores.isfinite()[:, None, :]
        change = (worth[:, None] - worth).abs()
        behind = softplus(torch.where(pair, scores[:, None, :] - scores[:, :, None], 0.0))
        return (behind * change * pair).sum() / pair.sum().clamp_min(1)

    return loss


def taught(teacher: Teacher) -> Loss:
    """The teacher's score of every document for its query; what counts is how far the positive is ahead."""

    def loss(scores: Tensor, positive: Tensor, rows: Tensor, documents: Tensor) -> Tensor:
        known = teacher(rows, documents)
        own, wanted = (torch.where(positive & scores.isfinite(), s, 0.0).sum(1, keepdim=True) - s for s in (scores, known))
        others = ~positive & scores.isfinite()
        return (own[others] - wanted[others]).square().mean()

    return loss


@dataclass(frozen=True, eq=False)
class Jpq:
    """Trained: `encoder`, then `codec`, read queries. The codec codes documents as before, by the points that it had."""

    codec: Codec
    encoder: nn.Module

    @classmethod
    def train(
        cls,
        codec: Codec,
        codes: Codes,
        q: Float[Tensor, "n ..."],
        positives: Int64[Tensor, "n"],
        loss: Loss | None = None,
        encoder: nn.Module | None = None,
        results: int = 200,
        sharpness: float = 20.0,
        rates: tuple[float, float] = (3e-4, 1e-3),
        batch: int = 32,
        held: float = 0.1,
        how: Training = Training(steps=500, warm=0.05),
    ) -> "Jpq":
        """For queries `q` (what `encoder` takes; vectors where there is none) and the row among `codes` that each should find.
        `rates`: of the encoder, and of the points relative to their mean size."""
        jpq = cls(codec, deepcopy(encoder) if encoder is not None else Steer(codec.dim, seed=how.seed))
        loss, results = loss or ranked(), min(results, len(codes))
        reach = torch.arange(codec.book.points.shape[2])
        inside = (reach < codec.book.widths[:, None]).float()[:, None]  # beyond a run the points stay zero
        points, stored = codec.book.points.clone().requires_grad_(), Blocked.of(codes.nibbles)
        learned, judging = split(len(q), held, how.seed)

        def live(points: Tensor) -> Codec:
            return replace(codec, book=replace(codec.book, points=points * inside))

        def found(queries: Tensor) -> Tensor:
            return Index(live(points.detach()), stored, codes.factor).search(queries.detach(), results).ids

        def step(rows: Int64[Tensor, "b"]) -> Tensor:
            queries, own = jpq.encoder(q[rows]), positives[rows][:, None]
            documents = torch.cat([found(queries), own], 1)
            reads = live(points)
            scores = sharpness * read(reads, reads.queries(queries), codes, documents)
            again = torch.cat(
                [torch.zeros(len(rows), results, dtype=torch.bool), (documents[:, :-1] == own).any(1, keepdim=True)], 1
            )
            return loss(scores.masked_fill(again, -torch.inf), documents == own, rows, documents)

        def judge() -> float:
            hit = found(jpq.encoder(q[judging])) == positives[judging][:, None]
            return -float((hit / torch.arange(1, results + 1)).sum(1).mean())

        size = float(points.detach().square().mean().sqrt())
        groups = [{"params": [*jpq.encoder.parameters()], "lr": rates[0]}, {"params": [points], "lr": rates[1] * size}]
        descend(groups, lambda rows, _: step(learned[rows]), judge, len(learned), batch, how, clip=1.0)
        book = replace(live(points.detach()).book, chosen=codec.book.writer.points)
        return replace(jpq, codec=replace(codec, book=book, name=f"{codec.name}-jpq"))

    @torch.no_grad()
    def queries(self, q: Float[Tensor, "q ..."]) -> Float32[Tensor, "q inp"]:
        """What the index is asked."""
        found: Tensor = self.encoder(q)
        return found


def read(codec: Codec, q: Float32[Tensor, "b inp"], codes: Codes, rows: Int64[Tensor, "b c"]) -> Float32[Tensor, "b c"]:
    """The scores of some documents, differentiable in the query and in the points."""
    y, start = codec.view.asked(q)
    values = codec.book.tables(y).gather(2, codes.nibbles[rows].long().transpose(1, 2)).sum(1)
    return start[:, None] + (values if codes.factor is None else codes.factor[rows].float() * values)
