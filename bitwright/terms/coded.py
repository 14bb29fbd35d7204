"""Coded: codes on a grid, with the parameters their groups share. The term every other one corrects."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright import index
from bitwright.grids.base import Grid, Params
from bitwright.grids.uneven import Uneven, level_counts
from bitwright.layout import Layout
from bitwright.terms import pack, ragged
from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class Coded:
    """`codes` [out, k / width] on `grid`, groups as in `layout`, for the input columns `columns` (None: all, in order).

    `params` leaves have one row per group, in stored precision; integer leaves are packed at the grid's own level count. The
    codes of an uneven grid are packed group by group, in as many bytes as the grid says before a weight is read.
    """

    shape: tuple[int, int]
    grid: Grid
    layout: Layout
    codes: Ints[Tensor, "out m"]
    params: Params
    columns: Ints[Tensor, "k"] | None = None

    def decode(self) -> Float[Tensor, "out inp"]:
        inner = (self.shape[0], self.codes.shape[1] * self.grid.width)
        narrow = narrowed(self.layout, self.grid.width)
        x = self.grid.decode(narrow.split(self.codes), self.params)
        dense = self.layout.join(x, inner)
        if self.columns is None:
            return dense
        full = dense.new_zeros(self.shape)
        full[:, self.columns.long()] = dense
        return full

    def tensors(self) -> dict[str, Tensor]:
        if isinstance(self.grid, Uneven):
            groups, size = self.layout.split(self.codes), ragged.payload(self.grid.bits, self.codes.numel())
            out = {"codes": ragged.pack(groups, level_counts(self.grid, self.params), size)}
        else:
            out = {"codes": pack.pack(self.codes, self.grid.levels)}
        for name, leaf in self.grid.leaves.items():
            rows = leaf.once(self.params[name], self.tiles)
            out[name] = pack.pack(rows, leaf.levels) if leaf.levels else rows.contiguous()
        if self.columns is not None:
            out["columns"] = self.columns.to(torch.int32)
        return out

    def meta(self) -> dict[str, Json]:
        return coded_meta(self.shape, self.grid, self.layout, None if self.columns is None else len(self.columns))

    @property
    def tiles(self) -> tuple[int, int]:
        return self.layout.tiles((self.shape[0], self.codes.shape[1] * self.grid.width))

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        grid, layout, out, inner = unfold(meta)
        found: Spec = (
            {"codes": ((ragged.payload(grid.bits, out * inner),), torch.uint8)}
            if isinstance(grid, Uneven)
            else {"codes": ((out, pack.width(inner // grid.width, grid.levels)), torch.uint8)}
        )
        for name, leaf in grid.leaves.items():
            down, count = leaf.rows(layout.tiles((out, inner)))
            found[name] = ((down, pack.width(count, leaf.levels) if leaf.levels else count), leaf.dtype)
        if meta["columns"] is not None:
            found["columns"] = ((inner,), torch.int32)
        return found

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Coded":
        grid, layout, out, inner = unfold(meta)
        tiles = layout.tiles((out, inner))
        params = {}
        for name, leaf in grid.leaves.items():
            rows = tensors[name]
            rows = pack.unpack(rows, leaf.levels, leaf.rows(tiles)[1]) if leaf.levels else rows
            params[name] = leaf.spread(rows, tiles)
        if isinstance(grid, Uneven):
            groups = ragged.unpack(tensors["codes"], level_counts(grid, params), out * inner // (tiles[0] * tiles[1]))
            codes = layout.join(groups, (out, inner))
        else:
            codes = pack.unpack(tensors["codes"], grid.levels, inner // grid.width)
        return cls(tuple(meta["shape"]), grid, layout, codes, params, tensors.get("columns"))


def narrowed(layout: Layout, width: int) -> Layout:
    """The layout of the codes of a grid of vectors: one code for `width` columns."""
    return Layout(layout.rows, layout.cols and layout.cols // width)


def coded_meta(shape: tuple[int, int], grid: Grid, layout: Layout, columns: int | None = None) -> dict[str, Json]:
    """The meta of a Coded term that may not exist yet: what a dry run and an allocation price."""
    return {
        "kind": "coded",
        "shape": list(shape),
        "grid": index.to_dict(grid),
        "layout": [layout.rows, layout.cols],
        "columns": columns,
    }


def unfold(meta: Mapping[str, Json]) -> tuple[Grid, Layout, int, int]:
    out, inp = meta["shape"]
    return (
        index.from_dict(meta["grid"]),
        Layout(*meta["layout"]),
        out,
        inp if meta["columns"] is None else meta["columns"],
    )
