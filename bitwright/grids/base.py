"""The protocol of a grid, and the one definition of "the nearest point".

A grid is K points in R^width, moved and stretched by the parameters of a group. It knows groups as rows [g, n] and nothing of
matrices. Parameters are a dict of tensors with one row per group, already in stored precision: a float leaf has its stored
dtype, an integer leaf holds codes of its own and is packed at its own level count. A leaf that many groups share has equal rows
in memory and is stored once. Decoding is fp32; encoding runs in the precision of its input, which is how the fp64 reference of
the tests shares this code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from jaxtyping import Integer as Ints
from torch import Tensor

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Leaf:
    """How one parameter of a group is stored: `count` numbers of `dtype`, or `count` codes packed at `levels` (> 0).

    `shared`: how many groups in a row of the matrix have it in common; `row` and `tensor`: all of them; `column`: all groups
    that lie below each other.
    """

    dtype: torch.dtype
    count: int = 1
    levels: int = 0
    shared: int | Literal["row", "column", "tensor"] = 1

    def rows(self, tiles: tuple[int, int]) -> tuple[int, int]:
        """Shape in which it is stored on a matrix of so many groups down and across."""
        if self.shared == "tensor":
            return 1, self.count
        if self.shared == "column":
            return 1, tiles[1] * self.count
        return tiles[0], tiles[1] // self.span(tiles) * self.count

    def span(self, tiles: tuple[int, int]) -> int:
        """How many consecutive groups share it."""
        if isinstance(self.shared, int):
            return self.shared
        return {"row": tiles[1], "column": 1, "tensor": tiles[0] * tiles[1]}[self.shared]

    def once(self, rows: Shaped[Tensor, "g count"], tiles: tuple[int, int]) -> Shaped[Tensor, "down across"]:
        """What is stored of the rows of all groups."""
        some = rows[: tiles[1]] if self.shared == "column" else rows[:: self.span(tiles)]
        return some.reshape(self.rows(tiles))

    def spread(self, stored: Shaped[Tensor, "down across"], tiles: tuple[int, int]) -> Shaped[Tensor, "g count"]:
        """Inverse of `once`."""
        each = stored.reshape(-1, self.count)
        return each.repeat(tiles[0], 1) if self.shared == "column" else each.repeat_interleave(self.span(tiles), 0)


@dataclass(frozen=True, eq=False)
class Kin:
    """What the groups of a fit have to do with each other: `across` of them make a row of the matrix, and `shared` holds
    second levels that are already fixed, one row per group (empty: the fit places them)."""

    across: int = 1
    shared: Mapping[str, Tensor] = field(default_factory=dict)


ALONE = Kin()


@runtime_checkable
class Grid(Protocol):
    """K points in R^width. `levels` is the exact number of storable codes, zero included."""

    @property
    def levels(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics that its fit weighs errors by; () where it looks at the weights alone."""

    @property
    def leaves(self) -> dict[str, Leaf]:
        """Parameters of one group and how they are stored."""

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        """Parameters for these groups, in stored precision; `weight` is the price of a squared error at each place."""

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g m"]:
        """Code of the nearest point, one per `width` numbers."""

    def decode(self, c: Ints[Tensor, "g m"], p: Params) -> Float[Tensor, "g n"]:
        """The point of each code, fp32."""

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g m"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Best parameters for given codes (weighted least squares); `p` itself where that makes no sense."""


def points(grid: Grid, p: Params) -> Float[Tensor, "g k width"]:
    """All points of every group, in code order."""
    groups = len(next(iter(p.values())))
    codes = torch.arange(grid.levels, device=next(iter(p.values())).device).expand(groups, -1)
    return grid.decode(codes, p).view(groups, grid.levels, grid.width)


def nearest_point(x: Float[Tensor, "g n"], points: Float[Tensor, "g k width"], chunk: int = 1 << 22) -> Ints[Tensor, "g m"]:
    """Code of the nearest point by Euclidean distance; the lowest code among equals. Works in bounded memory."""
    groups, levels, width = points.shape
    vectors = x.view(groups, -1, width)
    codes = torch.empty(vectors.shape[:2], dtype=torch.int16 if levels > 256 else torch.uint8, device=x.device)
    step = max(1, chunk // (vectors.shape[1] * levels * width))
    for i in range(0, groups, step):
        near, far = vectors[i : i + step, :, None], points[i : i + step, None].to(x.dtype)
        gap = (near - far).abs()[..., 0] if width == 1 else (near - far).square().sum(-1)
        codes[i : i + step] = gap.argmin(-1).to(codes.dtype)
    return codes


def weighted(x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None) -> Float[Tensor, "g n"]:
    """The weight itself, or ones; rows without any weight (inputs that never fired) count evenly."""
    if weight is None:
        return torch.ones_like(x)
    return torch.where(weight.sum(1, keepdim=True) > 0, weight.to(x.dtype), 1.0).expand_as(x)


def better(
    grid: Grid, x: Float[Tensor, "g n"], c: Ints[Tensor, "g m"], weight: Float[Tensor, "g n"] | None, new: Params, old: Params
) -> Params:
    """Group by group, the parameters under which these codes have the smaller weighted squared error; the old among equals."""
    d = weighted(x, weight)
    losses = [((grid.decode(c, p).to(x.dtype) - x).square() * d).sum(1, keepdim=True) for p in (new, old)]
    return {name: torch.where(losses[0] < losses[1], new[name], old[name]) for name in old}


def gather(p: Params, rows: Shaped[Tensor, "r"]) -> Params:
    """Parameters of the named groups."""
    return {name: leaf[rows] for name, leaf in p.items()}
