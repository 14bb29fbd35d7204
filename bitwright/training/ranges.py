"""Nearest points in a forward pass that can be differentiated, and ranges that are learned with them.

    W^ = nearest point to V on the grid stretched by e^a        dW^/dV = 1 inside the range, 0 outside (straight through)
                                                                dW^/da = W^ - V inside, W^ outside

the second as for a learned step size (LSQ; card: flexround). What the loss sees is what would be stored: the stretched parameters
are rounded to their own types before any point is chosen. All float leaves of all grids are lengths, so one factor per group
stretches the points about zero.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.coder import Coder
from bitwright.grids.base import Params
from bitwright.terms.base import decode
from bitwright.training.live import moves, narrowed

FAR = 1e6  # times the largest weight: beyond every range


class Ranges:
    """The groups of a coder with one learned logarithm each; fixed where groups share a scale, or where `learned` is False."""

    def __init__(self, coder: Coder, W: Float[Tensor, "out inp"], learned: bool = True) -> None:
        self.coder = coder
        self.logs: list[Tensor | None] = []
        for band, params in zip(coder.bands, coder.params):
            own = learned and all(leaf.shared == 1 for leaf in band.grid.leaves.values() if moves(leaf))
            groups, device = len(next(iter(params.values()))), W.device
            self.logs.append(torch.zeros(groups, 1, device=device, requires_grad=True) if own else None)
        flat = all(band.grid.width == 1 for band in coder.bands)
        far = FAR * W.abs().amax().clamp_min(1.0).expand_as(W)
        self.ends = (decode(coder.terms(-far)), decode(coder.terms(far))) if flat else (-far, far)

    def tensors(self) -> list[Tensor]:
        return [log for log in self.logs if log is not None]

    def now(self) -> Coder:
        """The coder with its ranges as they would be stored."""
        return replace(self.coder, params=tuple(self.stretched(i) for i in range(len(self.logs))))

    def stretched(self, i: int) -> Params:
        params, log = self.coder.params[i], self.logs[i]
        if log is None:
            return params
        grid, by = self.coder.bands[i].grid, log.detach().exp()
        return {n: narrowed(t.float() * by, t.dtype) if moves(grid.leaves[n]) else t for n, t in params.items()}

    def spread(self) -> Float[Tensor, "out inp"] | None:
        """The logarithm that belongs to every weight, differentiable; None where none is learned."""
        if not self.tensors():
            return None
        full = torch.zeros(self.coder.shape, device=self.tensors()[0].device)
        for i, (band, log) in enumerate(zip(self.coder.bands, self.logs)):
            if log is not None:
                inner = self.coder.inner(i)
                part = band.layout.join(log.expand(-1, inner[0] * inner[1] // len(log)), inner)
                full = part if band.columns is None else full.index_copy(1, band.columns.long(), part)
        return full

    def snap(self, V: Float[Tensor, "out inp"]) -> Float[Tensor, "out inp"]:
        """The nearest points to V, with the gradients above."""
        a, seen = self.spread(), V.detach()
        with torch.no_grad():
            What = decode(self.now().terms(seen))
            low, high = (end if a is None else end * a.exp() for end in self.ends)
            inside = (seen >= low) & (seen <= high)
        found = What + (V - seen) * inside
        return found if a is None else found + (What - seen * inside) * (a - a.detach())
