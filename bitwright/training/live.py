"""Parameters of codes while they are trained: every float leaf as fp32, in the shape in which it is stored.

A leaf that many groups share is one tensor here, so that its gradient is the sum over all of them; integer leaves (zero points,
second levels, choices of a table) stay what they are. `stored` is what is left of it in the leaf's own type.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import Leaf, Params
from bitwright.terms.coded import Coded


class Live:
    """Coded terms whose float parameters an optimizer may move."""

    def __init__(self, coded: Sequence[Coded]) -> None:
        self.coded = tuple(coded)
        self.held: list[dict[str, Tensor]] = [
            {
                name: leaf.once(term.params[name], term.tiles).detach().float().clone().requires_grad_()
                for name, leaf in term.grid.leaves.items()
                if moves(leaf)
            }
            for term in self.coded
        ]

    def tensors(self) -> list[Tensor]:
        return [t for held in self.held for t in held.values()]

    def params(self, i: int) -> Params:
        """Of term i, one row per group, differentiable."""
        term = self.coded[i]
        live = {name: term.grid.leaves[name].spread(t, term.tiles) for name, t in self.held[i].items()}
        return {**term.params, **live}

    def stored(self, i: int) -> Params:
        """The same in stored precision."""
        term = self.coded[i]
        kept = {
            name: term.grid.leaves[name].spread(narrowed(t.detach(), term.grid.leaves[name].dtype), term.tiles)
            for name, t in self.held[i].items()
        }
        return {**term.params, **kept}

    def decode(self) -> Float[Tensor, "out inp"]:
        """The sum of the terms by the parameters as they are now, differentiable."""
        return sum_of([replace(term, params=self.params(i)).decode() for i, term in enumerate(self.coded)])

    def terms(self) -> tuple[Coded, ...]:
        return tuple(replace(term, params=self.stored(i)) for i, term in enumerate(self.coded))


def moves(leaf: Leaf) -> bool:
    return leaf.levels == 0 and leaf.dtype.is_floating_point


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


def sum_of(parts: Sequence[Float[Tensor, "out inp"]]) -> Float[Tensor, "out inp"]:
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found
