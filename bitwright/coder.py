"""Coder: grids and layouts bound to one matrix. The only thing a rounding needs to know of formats.

A band is a grid and a layout on some of the input columns; bands over disjoint columns are mixed precision, a band over
permuted columns is activation order with groups of its own (`g_idx`). The coder answers four questions: which columns move
together, where is the nearest storable value, what parameters would fit better, and what are the terms of a matrix that lies
on the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.base import Grid, Kin, Params, gather
from bitwright.layout import Layout
from bitwright.terms.coded import Coded, coded_meta, narrowed


@dataclass(frozen=True, eq=False)
class Band:
    """A grid and a layout on the input columns `columns`, in that order (None: all, as they are)."""

    grid: Grid
    layout: Layout
    columns: Ints[Tensor, "k"] | None = None

    def take(self, W: Float[Tensor, "out inp"]) -> Float[Tensor, "out k"]:
        return W if self.columns is None else W[:, self.columns]

    def legal(self, shape: tuple[int, int]) -> str | None:
        """None, or in words why this band cannot sit on such a matrix."""
        inner = shape[1] if self.columns is None else len(self.columns)
        rows, cols = self.layout.block((shape[0], inner))
        if not self.layout.fits((shape[0], inner)):
            return f"blocks of {rows} x {cols} do not tile {shape[0]} x {inner}"
        if cols % self.grid.width:
            return f"groups of {cols} columns do not hold whole vectors of {self.grid.width}"
        tiles = self.layout.tiles((shape[0], inner))
        for leaf in self.grid.leaves.values():
            if isinstance(leaf.shared, int) and tiles[1] % leaf.shared:
                return f"{tiles[1]} groups in a row are no multiple of the {leaf.shared} that share a second level"
        return None


@dataclass(frozen=True, eq=False)
class Coder:
    """Bands fitted to a matrix of `shape`; `weight` is the price of an error at each input or weight, where the fit asks."""

    shape: tuple[int, int]
    bands: tuple[Band, ...]
    params: tuple[Params, ...]
    weight: Float[Tensor, "*out inp"] | None = None
    shared: Params = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        W: Float[Tensor, "out inp"],
        bands: Sequence[Band],
        weight: Float[Tensor, "*out inp"] | None = None,
        shared: Params | None = None,
    ) -> "Coder":
        """Place the points of every group of every band, under the second levels `shared` (one row) where they are given.
        Raises ValueError where a band is illegal on this matrix."""
        shape = (W.shape[0], W.shape[1])
        if why := next((why for band in bands if (why := band.legal(shape))), None) or uncovered(bands, shape[1]):
            raise ValueError(why)
        params = []
        for band in bands:
            part = band.take(W)
            tiles = band.layout.tiles((shape[0], part.shape[1]))
            kin = Kin(tiles[1], {name: leaf.expand(tiles[0] * tiles[1], -1) for name, leaf in (shared or {}).items()})
            params.append(band.grid.fit(band.layout.split(part), prices(band, W, weight), kin))
        return cls(shape, tuple(bands), tuple(params), weight, shared or {})

    def again(self, W: Float[Tensor, "out inp"]) -> "Coder":
        """The same bands fitted to another matrix."""
        return Coder.fit(W, self.bands, self.weight, self.shared)

    @cached_property
    def home(self) -> tuple[Ints[Tensor, "inp"], Ints[Tensor, "inp"]]:
        """Of every input column: its band, and its place in the band."""
        band, place = torch.full((self.shape[1],), -1), torch.zeros(self.shape[1], dtype=torch.long)
        for i, b in enumerate(self.bands):
            columns = torch.arange(self.shape[1]) if b.columns is None else b.columns.cpu().long()
            band[columns], place[columns] = i, torch.arange(len(columns))
        return band, place

    def steps(self) -> list[Ints[Tensor, "_"]]:
        """Columns that move together, in the order of the bands: single columns, or the width of a grid of vectors."""
        found: list[Tensor] = []
        for b in self.bands:
            columns = torch.arange(self.shape[1]) if b.columns is None else b.columns.cpu().long()
            found.extend(columns.view(-1, b.grid.width).unbind())
        return found

    def snap(self, x: Float[Tensor, "out v"], cols: Ints[Tensor, "v"]) -> Float[Tensor, "out v"]:
        """Nearest storable values for the columns of one step."""
        b, groups = self.groups(cols)
        grid, p = self.bands[b].grid, gather(self.params[b], groups.to(x.device))
        return grid.decode(grid.encode(x, p), p).to(x.dtype)

    def groups(self, cols: Ints[Tensor, "v"]) -> tuple[int, Ints[Tensor, "out"]]:
        """Band of a step, and for every row the group that its columns belong to."""
        band, place = self.home
        b, at = int(band[cols[0]]), int(place[cols[0]])
        rows, block_cols = self.bands[b].layout.block(self.inner(b))
        across = self.inner(b)[1] // block_cols
        return b, torch.arange(self.shape[0]) // rows * across + at // block_cols

    def inner(self, b: int) -> tuple[int, int]:
        columns = self.bands[b].columns
        return self.shape[0], self.shape[1] if columns is None else len(columns)

    def refit(self, W: Float[Tensor, "out inp"], cols: Ints[Tensor, "v"]) -> "Coder":
        """Fit the groups that these columns belong to afresh, to `W` as it is now; second levels stay."""
        b, groups = self.groups(cols)
        band, place = self.home
        block_cols = self.bands[b].layout.block(self.inner(b))[1]
        mates = ((band == b) & (place // block_cols == place[cols[0]] // block_cols)).nonzero()[:, 0]
        mates = mates[place[mates].argsort()].to(W.device)
        local = Band(self.bands[b].grid, Layout(self.bands[b].layout.rows, None))
        weight = None if self.weight is None else self.weight[..., mates]
        part, at = W[:, mates], groups.unique().to(W.device)
        shared = {name: self.params[b][name][at] for name, leaf in local.grid.leaves.items() if leaf.shared != 1}
        fresh = local.grid.fit(local.layout.split(part), prices(local, part, weight), Kin(1, shared))
        params = {name: leaf.index_copy(0, at, fresh[name]) for name, leaf in self.params[b].items()}
        return replace(self, params=tuple(params if i == b else p for i, p in enumerate(self.params)))

    def terms(self, What: Float[Tensor, "out inp"]) -> tuple[Coded, ...]:
        """The stored form of a matrix on the grid (each entry is coded to its nearest point)."""
        found = []
        for i, (band, p) in enumerate(zip(self.bands, self.params)):
            codes = band.grid.encode(band.layout.split(band.take(What)), p)
            narrow, (out, inner) = narrowed(band.layout, band.grid.width), self.inner(i)
            codes = narrow.join(codes, (out, inner // band.grid.width))
            found.append(Coded(self.shape, band.grid, band.layout, codes, p, band.columns))
        return tuple(found)


def prices(band: Band, W: Float[Tensor, "out inp"], weight: Float[Tensor, "*out inp"] | None) -> Float[Tensor, "g n"] | None:
    """The weight of each input, or of each weight, spread over the groups of a band; None where the grid does not ask."""
    if weight is None or not band.grid.needs:
        return None
    return band.layout.split(band.take(weight.expand(W.shape)))


def metas(shape: tuple[int, int], bands: Sequence[Band]) -> tuple[dict, ...]:
    """What the coded terms of these bands will be, before any weight is read: the ledger of a dry run."""
    return tuple(coded_meta(shape, b.grid, b.layout, None if b.columns is None else len(b.columns)) for b in bands)


def uncovered(bands: Sequence[Band], inp: int) -> str | None:
    """None where every input column is in exactly one band, or in words what is wrong."""
    columns = [torch.arange(inp) if b.columns is None else b.columns.cpu().long() for b in bands]
    count = torch.zeros(inp, dtype=torch.long)
    for part in columns:
        if len(part) and not (int(part.min()) >= 0 and int(part.max()) < inp):
            return f"a band names the column {int(part.max())} of a matrix with {inp} columns"
        count.index_add_(0, part, torch.ones_like(part))
    if (count > 1).any():
        return f"column {int(count.argmax())} is in the bands twice; bands must be disjoint"
    return f"column {int(count.argmin())} is in no band and would stay uncoded" if (count < 1).any() else None
