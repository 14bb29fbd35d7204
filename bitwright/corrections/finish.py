"""The protocol of a finish: a step over the compressed model as a whole, at the end of the road. Codes and sizes stay; stored
numbers beside the codes (biases, scales) are replaced by better ones. Whether they are better is judged by finishing.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from bitwright.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Both:
    """The float model and the compressed one, fp32, which are called on `batches` as `wiring` says. The `held` batches are
    for judging: no step looks at them but to choose among its own results."""

    theirs: nn.Module
    ours: nn.Module
    batches: Sequence[Tensor]
    held: Sequence[Tensor]
    wiring: Wiring
    types: Mapping[str, torch.dtype] = field(default_factory=dict)  # of the stored tensors; fp32 where nothing is said

    def apart(self, x: Tensor, changed: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """KL(float || compressed) per prediction in nats, differentiable in `changed`, new values of tensors of `ours`."""
        with torch.no_grad():
            teacher = self.theirs(x, **self.wiring.call).logits.float().log_softmax(-1)
        student = functional_call(self.ours, dict(changed), (x,), dict(self.wiring.call)).logits.float().log_softmax(-1)
        return (teacher.exp() * (teacher - student)).sum(-1).mean()

    def judged(self, changed: Mapping[str, Tensor]) -> float:
        """The same on the held-out batches, of what would be stored."""
        with torch.no_grad():
            stored = self.as_stored(changed)
            return sum(float(self.apart(x, stored)) for x in self.held) / len(self.held)

    def as_stored(self, changed: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """In the precision of the file, and the type in which the model holds it; `prefix`: what the names lack."""
        own = dict(self.ours.named_parameters()) | dict(self.ours.named_buffers())
        return {n: t.detach().to(self.types.get(prefix + n, torch.float32)).to(own[prefix + n].dtype) for n, t in changed.items()}


@runtime_checkable
class Finish(Protocol):
    def refusal(self, model: nn.Module, wiring: Wiring) -> str | None:
        """One sentence with cause and remedy where a model cannot take this step; it holds no weights."""

    def __call__(self, both: Both) -> tuple[Mapping[str, Tensor], str]:
        """New values of tensors of the compressed model by name, and in a few words what they are."""
