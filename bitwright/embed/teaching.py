"""What a view learns from, and the loop that teaches it: a view is kept only where held-out vectors say that it is better.

    Pairs       CE over [partner, the 5 hardest others] at cosines / temperature, in both directions (BEBR's loss; card: bebr)
    Likeness    KL(softmax(cosines of floats / T) || softmax(scores / T)), each vector asked for among the others: where there
                are no pairs. Ours; scores are those of a search, vectors against codes, which does more for both kinds of search
                than codes against codes

Others of an anchor's own id are no negatives. BEBR's queue of past codes is left out: it is off in the configuration released.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed.learning import descend
from bitwright.embed.views import View
from bitwright.evaluation.retrieval import overlap
from bitwright.progress import Progress, silent
from bitwright.training.loop import Training


@runtime_checkable
class Lesson(Protocol):
    """A loss on some of its rows."""

    def __len__(self) -> int: ...
    def loss(self, view: View, rows: Int64[Tensor, "b"]) -> Float[Tensor, ""]: ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Row by row what should be near each other: two texts of one document, a query and what was clicked; `ids` of that."""

    anchors: Float32[Tensor, "n inp"]
    partners: Float32[Tensor, "n inp"]
    ids: Int64[Tensor, "n"]
    temperature: float = 0.05
    hardest: int = 5

    def __len__(self) -> int:
        return len(self.ids)

    def loss(self, view: View, rows: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
        a, p = (normalize(view.seen(x[rows])) for x in (self.anchors, self.partners))
        return contrast(a, p, self.ids[rows], self.temperature, self.hardest)


@dataclass(frozen=True, eq=False)
class Likeness:
    """Of unit vectors."""

    x: Float32[Tensor, "n inp"]
    temperature: float = 0.1

    def __len__(self) -> int:
        return len(self.x)

    def loss(self, view: View, rows: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
        x = self.x[rows]
        told, wanted = self.logs(view.asked(x).y @ normalize(view.seen(x)).T), self.logs(x @ x.T)
        return torch.nn.functional.kl_div(told, wanted, log_target=True, reduction="batchmean")

    def logs(self, scores: Float32[Tensor, "b b"]) -> Float32[Tensor, "b others"]:
        others = ~torch.eye(len(scores), dtype=torch.bool)
        return (scores[others].view(len(scores), -1) / self.temperature).log_softmax(1)


def contrast(
    a: Float32[Tensor, "b w"], p: Float32[Tensor, "b w"], ids: Int64[Tensor, "b"], temperature: float, hardest: int
) -> Float[Tensor, ""]:
    """Of both directions, summed."""
    same, cosines = ids[:, None] == ids, a @ p.T / temperature
    total = cosines.new_zeros(())
    for logits in (cosines, cosines.T):
        negatives = logits.masked_fill(same, -torch.inf).topk(min(hardest, len(ids) - 1), 1).values
        positive = logits.diagonal()[:, None]
        total = total + (torch.cat([positive, negatives], 1).logsumexp(1) - positive[:, 0]).mean()
    return total


@dataclass(frozen=True, eq=False)
class Kept:
    """How much of the floats' top k is found, the mean of codes asking and of vectors asking: what a view is worth on vectors that
    it does not learn from."""

    queries: Float32[Tensor, "q inp"]
    documents: Float32[Tensor, "n inp"]
    k: int = 10

    def __call__(self, view: View) -> float:
        exact = (self.queries @ self.documents.T).topk(self.k).indices
        seen, asking = normalize(view.seen(self.documents)), (view.seen(self.queries), view.asked(self.queries).y)
        return sum(float(overlap((q @ seen.T).topk(self.k).indices, exact).mean()) for q in asking) / len(asking)


class Taught(NamedTuple):
    """The view that was worth most, and what the first and this one are worth."""

    view: View
    before: float
    after: float


def teach(
    view: View,
    lesson: Lesson,
    worth: Callable[[View], float],
    how: Training,
    step: float = 1e-3,
    batch: int = 512,
    progress: Progress = silent,
) -> Taught:
    """All tensors of a view, by steps of `step` on `batch` rows. What is kept is worth more than the first view, or is that one."""
    live = {name: tensor.clone().requires_grad_() for name, tensor in view.tensors().items()}
    moving = type(view).of(live, view.meta())

    def still() -> View:
        return type(view).of({name: tensor.detach() for name, tensor in live.items()}, view.meta())

    groups = [{"params": list(live.values()), "lr": step}]
    learn, judge = (lambda rows, _: lesson.loss(moving, rows)), (lambda: -worth(still()))
    lost, least = descend(groups, learn, judge, len(lesson), batch, how, progress=progress)
    return Taught(still() if least < lost else view, -lost, -least)
