"""JPQ: the points of a code, and its queries, trained for what the documents are asked (arXiv 2108.00644; card: income).

    min over points, encoder   sum over results of |1/rank_+ - 1/rank_-| log(1 + exp(s_- - s_+)),     s = <E(q), decode(c)>

Codes c are those of the codec before training and never change; results are found, in every step, by the index as it then is, so
the negatives are those that a search would show. The loss is `ranked`, or `taught`: the squared error of s_+ - s_- to a teacher's.
Any `Codec` will do in place of OPQ: its map and its factors stay, its book moves, and keeps the points that codes are chosen by
(`Book.chosen`): new documents are coded as the old ones were, and an index of the trained codec is like any other.
Differs from the paper: points and encoder are the best by the reciprocal rank on held-out queries, the start among them; without an
encoder of texts it is the view that learns to turn queries (`steered.py`), and the codec is all that was trained; a query may have
several answers, none of which counts against another; `sharpness` stretches scores, since cosines are short.
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
from bitwright.embed.learning import descend, split
from bitwright.embed.steered import Steered
from bitwright.evaluation.retrieval import reciprocal_rank
from bitwright.kernels.scanning import Blocked
from bitwright.progress import Progress, silent
from bitwright.training.loop import Training

# of scores, which of them are positives', the rows of the queries, the rows of the documents (the found ones in their order)
Loss = Callable[[Float32[Tensor, "b c"], Bool[Tensor, "b c"], Int64[Tensor, "b"], Int64[Tensor, "b c"]], Float32[Tensor, ""]]
Teacher = Callable[[Int64[Tensor, "b"], Int64[Tensor, "b c"]], Float32[Tensor, "b c"]]


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
        there = positive & scores.isfinite()
        own, wanted = (torch.where(there, s, 0.0).sum(1, keepdim=True) / there.sum(1, keepdim=True) - s for s in (scores, known))
        others = ~positive & scores.isfinite()
        return (own[others] - wanted[others]).square().mean()

    return loss


@dataclass(frozen=True, eq=False)
class Jpq:
    """Trained: `encoder`, then `codec`, read queries. The codec codes documents as before, by the points that it had. `before`,
    `after`: mean reciprocal rank of the first answer to the queries that judged; equal, and the codec the given one, where nothing
    helped."""

    codec: Codec
    encoder: nn.Module
    before: float
    after: float

    @classmethod
    def train(
        cls,
        codec: Codec,
        codes: Codes,
        q: Float[Tensor, "n ..."],
        answers: Int64[Tensor, "n *several"],
        loss: Loss | None = None,
        encoder: nn.Module | None = None,
        results: int = 200,
        sharpness: float = 20.0,
        rates: tuple[float, float] = (3e-4, 1e-3),
        batch: int = 32,
        held: float = 0.1,
        how: Training = Training(steps=500, warm=0.05),
        progress: Progress = silent,
    ) -> "Jpq":
        """For queries `q` (what `encoder` takes; vectors where there is none) and the rows among `codes` that each should find,
        filled up with -1. `rates`: of encoder or view, and of the points relative to their mean size."""
        given = codec
        if encoder is None:
            codec, encoder = replace(codec, view=Steered.start(codec.view, seed=how.seed)), nn.Identity()
        encoder, answers = deepcopy(encoder), answers.reshape(len(q), -1)
        loss, results = loss or ranked(), min(results, len(codes))
        reach = torch.arange(codec.book.points.shape[2])
        inside = (reach < codec.book.widths[:, None]).float()[:, None]  # beyond a run the points stay zero
        fixed, stored = codec.tensors(), Blocked.of(codes.nibbles)
        points = codec.book.points.clone().requires_grad_()
        turning = {name: t.clone().requires_grad_() for name, t in fixed.items() if name.startswith("view.change.")}
        learned, judging = split(len(q), held, how.seed)

        def live() -> Codec:
            return Codec.of({**fixed, **turning, "book.points": points * inside}, codec.meta())

        def still() -> Codec:
            return Codec.of({name: tensor.detach() for name, tensor in live().tensors().items()}, codec.meta())

        def found(queries: Tensor) -> Tensor:
            return Index(still(), stored, codes.factor).search(queries.detach(), results).ids

        def step(chosen: Int64[Tensor, "b"], _: int) -> Tensor:
            rows = learned[chosen]
            queries, own, reads = encoder(q[rows]), answers[rows], live()
            documents = torch.cat([found(queries), own], 1)
            scores = sharpness * read(reads, reads.queries(queries), codes, documents)
            positive = (documents[:, :, None] == own[:, None]).any(2)
            twice = (documents[:, :results, None] == own[:, None]).any(1) | (own < 0)
            again = torch.cat([torch.zeros(len(rows), results, dtype=torch.bool), twice], 1)
            return loss(scores.masked_fill(again, -torch.inf), positive, rows, documents)

        def judge() -> float:
            return -float(reciprocal_rank(found(encoder(q[judging])), answers[judging]).mean())

        size = float(points.detach().square().mean().sqrt())
        moved = [*encoder.parameters(), *turning.values()]
        groups = [{"params": moved, "lr": rates[0]}, {"params": [points], "lr": rates[1] * size}]
        first, least = descend(groups, step, judge, len(learned), batch, how, 1.0, progress)
        if first == least:
            return cls(given, encoder, -first, -least)
        book = replace(still().book, chosen=codec.book.writer.points)
        name = f"{codec.name.removesuffix('-jpq')}-jpq"
        return cls(replace(still(), book=book, name=name), encoder, -first, -least)

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
