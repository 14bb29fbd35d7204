"""Quantized inputs of a matrix while it is trained, and their range, which may be learned with it (AdaQuant, card: adaquant).

    x^ = Q(x) on [l, h]      dx^/dx = 1 inside, 0 outside       dx^/dh = (x^ - x) / (h - l) inside, 1 above       dx^/dl = likewise

which for equally spaced points is the derivative straight through the rounding: of x^ = l + s r, s = (h - l) / M, by h it is
(r - (x - l) / s) / M. What the loss sees is what would be stored: the range becomes the grid's own parameters before anything is
quantized.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.activations.base import Activation
from bitwright.activations.static import Static
from bitwright.grids.base import Params

FAR = 1e6  # times the range: beyond it


class Inputs:
    """`stored`: the parameters as calibrated on `bounds`, [2] (None: they come with the inputs, or stay)."""

    def __init__(self, part: Activation, stored: Params, bounds: Float[Tensor, "2"] | None = None) -> None:
        self.part, self.calibrated = part, stored
        self.bounds = bounds.float().clone() if bounds is not None and isinstance(part, Static) else None
        self.groups: list[dict[str, Any]] = []

    def learn(self, rate: float) -> None:
        """From now on an optimizer moves the range, by about `rate` of it in a step; not at all at 0."""
        self.groups = []
        if self.bounds is not None and rate > 0:
            self.bounds.requires_grad_()
            self.groups = [{"params": [self.bounds], "lr": rate * float(self.bounds.detach().diff().clamp_min(1e-6))}]

    def stored(self) -> Params:
        return self.calibrated if self.bounds is None else self.part.calibrate(self.bounds.detach())

    def now(self) -> Tensor | None:
        return None if self.bounds is None else self.bounds.detach().clone()

    def back(self, bounds: Tensor | None) -> None:
        """To what `now` was."""
        if self.bounds is not None and bounds is not None:
            self.bounds.data.copy_(bounds)

    def __call__(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Quantized, differentiable in x and in the range where it is learned."""
        seen, stored = x.detach(), self.stored()
        y = self.quantized(seen, stored)
        if self.bounds is None or not self.groups:
            return x + (y - seen)
        low, high = self.bounds
        far = FAR * self.bounds.detach().abs().amax().clamp_min(1)
        least, most = self.quantized(torch.stack([-far, far])[None], stored)[0]
        above, below = seen > most, seen < least
        inside = ~(above | below)
        off = (y - seen) * inside / (most - least).clamp_min(1e-12)
        up, down = high - high.detach(), low - low.detach()
        return y + (x - seen) * inside + up * (off + above.to(y.dtype)) + down * (below.to(y.dtype) - off)

    def quantized(self, x: Tensor, stored: Params) -> Tensor:
        """Numbers of a static range one by one, all others token by token."""
        flat = x.reshape(len(x), -1) if isinstance(self.part, Static) else x.reshape(-1, x.shape[-1])
        return self.part(flat, stored).view(x.shape)
