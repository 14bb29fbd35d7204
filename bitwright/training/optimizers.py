"""Optimizers by name: torch's, and two that it lacks.

sign    w -= lr sign(g)
lamb    w -= lr |w| u / |u|,   u = m^ / (sqrt(v^) + eps): Adam's direction, as long as the tensor itself (arXiv 1904.00962)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, Optimizer, RMSprop


class Sign(Optimizer):
    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


class Lamb(Optimizer):
    """Without weight decay; bias corrections scale the step, not the ratio of norms (card: pv-tuning)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-6
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.move(p, group))

    def move(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        (b1, b2), state["step"] = group["betas"], state["step"] + 1
        grad: Any = p.grad
        mean, square = state["mean"].lerp_(grad, 1 - b1), state["square"].lerp_(grad.square(), 1 - b2)
        u = mean / (square.sqrt() + group["eps"])
        length = u.norm()
        ratio = torch.where(length > 0, p.norm() / length.clamp_min(1e-30), 0.0)
        corrected = (1 - b2 ** state["step"]) ** 0.5 / (1 - b1 ** state["step"])
        moved: Tensor = u * (group["lr"] * ratio * corrected)
        return moved


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda groups: Adam(groups, betas=(0.9, 0.999)),
    "sgd": SGD,
    "adamax": Adamax,
    "rmsprop": lambda groups: RMSprop(groups, alpha=0.9),
    "sign": Sign,
    "lamb": Lamb,
}
