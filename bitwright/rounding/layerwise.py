"""Layerwise: a joint rounding applied to one matrix at a time, under the exact error of that layer's outputs.

    loss(W^) = tr(E H E^T),   E = W - W^,   H = E[x x^T]:   all calibration tokens at once, for the price of one product

It makes every trained rounding a rounding like any other: it goes into chains, and is compared with GPTQ on GPTQ's own ground.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.rounding.base import JointRounding, alone
from bitwright.terms.base import Json, Terms
from bitwright.training.problem import Problem, Subject, Weights


@dataclass(frozen=True)
class Layerwise:
    joint: JointRounding

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(sorted({"gram", *alone(self.joint).needs}))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        H, unit = known.gram.to(W.dtype), float(known.gram.diagonal().mean()) * W.numel() or 1.0

        def loss(weights: Weights, _: int) -> Tensor:
            E = weights["one"] - W
            return ((E @ H) * E).sum() / unit

        subject = Subject(W, start or self.begun(W, coder, known), known)
        problem = Problem({"one": subject}, loss, 1, 0)
        found = self.joint.solve(problem)["one"]
        for remark in problem.notes:
            known.note(remark)
        return found

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        return alone(self.joint).metas(shape, bands)

    def begun(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known) -> Terms:
        start = self.joint.start
        return (Layerwise(start) if isinstance(start, JointRounding) else start)(W, coder, known)
