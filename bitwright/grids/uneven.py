"""The protocol of a grid whose groups have numbers of levels of their own."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.base import ALONE, Grid, Kin, Params
from bitwright.terms.ragged import price


@runtime_checkable
class Uneven(Grid, Protocol):
    """A grid whose groups have numbers of levels of their own. All their codes together get `bits` per code, whoever gets them;
    the leaf `count` of a group is the place of its number in `counts`. `fit` gives every group the same."""

    @property
    def bits(self) -> float: ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Ascending; the first is 1: a group without codes."""

    def recount(self, x: Float[Tensor, "g n"], p: Params, count: Ints[Tensor, "g 1"], kin: Kin = ALONE) -> Params:
        """Parameters of the same groups with other numbers of levels."""


def level_counts(grid: Uneven, p: Params) -> Ints[Tensor, "g"]:
    """How many levels each group has."""
    return torch.tensor(grid.counts, device=p["count"].device)[p["count"][:, 0].long()]


def affordable(counts: tuple[int, ...], bits: float) -> int:
    """The place of the most levels that so many bits per code hold."""
    return max(i for i, levels in enumerate(counts) if price(levels) <= bits + 1e-9)
