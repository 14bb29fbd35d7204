"""A coded matrix as a GGUF type: which type holds it, and its term as the leaves of that type's blocks and back, exactly.

    ternary, groups of 256                        TQ1_0 or TQ2_0
    integer, symmetric, groups of 32, fp16        Q4_0 (16 levels)  Q5_0 (32)  Q8_0 (256)
    offset, groups of 32, fp16 scale and minimum  Q4_1 (16)  Q5_1 (32)
    e2m1 with powers of two, groups of 32         MXFP4
    second levels under one fp16 per 256          Q3_K Q6_K (integer)   Q2_K Q4_K Q5_K (offset)

A type holds a grid of fewer levels too, and larger groups, whose scale it then stores several times: more bytes, equal numbers.
Of the types that hold a matrix the smallest is taken. How a grid was fitted does not matter here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from bitwright import index
from bitwright.errors import BadRequest
from bitwright.export.base import Metas
from bitwright.export.compressed_tensors.tensors import signed, unsigned
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.blocks.base import Block, Leaves
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E8M0
from bitwright.grids.offset import Offset
from bitwright.grids.scales import Float
from bitwright.grids.second_level import SecondLevel
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.terms.base import Json
from bitwright.terms.coded import Coded, coded_meta, unfold


def offset(levels: int, codes: int, span: int) -> Offset:
    return Offset(levels, scale=SecondLevel(codes, span), minimum=SecondLevel(codes, span, least=0))


GRIDS: dict[str, Any] = {
    "TQ1_0": Table("ternary"),
    "TQ2_0": Table("ternary"),
    "Q2_K": offset(4, 16, 16),
    "Q3_K": Integer(8, True, scale=SecondLevel(64, 16, signed=True)),
    "MXFP4": Table("e2m1", scale=E8M0("even")),
    "Q4_0": Integer(16, True),
    "Q4_K": offset(16, 64, 8),
    "Q4_1": Offset(16),
    "Q5_0": Integer(32, True),
    "Q5_K": offset(32, 64, 8),
    "Q5_1": Offset(32),
    "Q6_K": Integer(64, True, scale=SecondLevel(256, 16, signed=True)),
    "Q8_0": Integer(256, True),
}  # what a matrix of each type is read as; smallest first


def holder(metas: Metas, ternary: str = "TQ1_0") -> Block | str:
    """The type that holds a matrix, or in words why none does. `ternary`: which of its two types."""
    if len(metas) > 1 or metas[0]["kind"] != "coded":
        kinds = " + ".join(meta["kind"] for meta in metas)
        return f"it is a sum of terms ({kinds}), and a tensor of GGUF is one coded matrix; leave out corrections"
    if metas[0]["columns"] is not None:
        return "its groups follow a permutation of the inputs, and those of GGUF lie in order; use static groups"
    grid, layout, out, inp = unfold(metas[0])
    found = [BLOCKS[name] for name, held in GRIDS.items() if holds(BLOCKS[name], held, grid, layout, (out, inp))]
    if not found:
        return f"there is no type for {described(grid, layout)}; the nearest is {nearest(grid)}"
    fitting = [block for block in found if inp % block.weights == 0]
    if not fitting:
        return (
            f"its rows of {inp} weights are not whole blocks of {found[0].weights}, as {found[0].name} has them; "
            "use a type of smaller blocks, or leave the matrix as it is with an ignore rule"
        )
    return next((block for block in fitting if block.name == ternary), fitting[0])


def holds(block: Block, held: Any, grid: Any, layout: Layout, shape: tuple[int, int]) -> bool:
    """Whether every number that a grid on a layout can store is one of the type's."""
    held, grid = plain(held), plain(grid)
    cols = layout.block(shape)[1]
    if type(held) is not type(grid) or cols % block.group:
        return False
    if isinstance(held, Table):
        return bool(held.table == grid.table and isinstance(grid.scale, E8M0))
    if isinstance(held, Integer):
        return bool(grid.symmetric and inside(grid, held)) and scaled(block, held.scale, grid.scale, cols, layout.tiles(shape))
    pairs = ((held.scale, grid.scale), (held.minimum, grid.minimum))
    return bool(grid.levels <= held.levels) and all(scaled(block, *pair, cols, layout.tiles(shape)) for pair in pairs)


def plain(grid: Any) -> Any:
    """Ternary is a grid of integers."""
    return Integer(3, True, scale=grid.scale) if isinstance(grid, Table) and grid.table == "ternary" else grid


def inside(grid: Any, held: Any) -> bool:
    """Integers of one counted from its zero lie among those of the other. The types of trits hold just these."""
    (low, high), (least, most) = ((-(g.levels // 2), g.levels - 1 - g.levels // 2) for g in (grid, held))
    return least <= low and high <= most


def scaled(block: Block, held: Any, scale: Any, cols: int, tiles: tuple[int, int]) -> bool:
    if isinstance(held, Float):
        return bool(scale == held)
    if not isinstance(scale, SecondLevel) or scale.shared.span(tiles) * cols % block.weights:
        return False
    (low, high), (least, most) = ((-s.zero, s.levels - 1 - s.zero) for s in (scale, held))
    return least <= low and high <= most


def leaves(term: Coded, block: Block) -> Leaves:
    """A term as the leaves of the type that holds it."""
    held, grid = plain(GRIDS[block.name]), plain(term.grid)
    codes = term.codes
    if isinstance(held, Table):
        codes = signed(codes, held.table)
    elif isinstance(held, Integer):
        codes = codes.int() + (held.levels // 2 - grid.levels // 2)
    found = {"codes": codes.to(torch.uint8)}
    for name, mine, its in scales_of(held, grid):
        found[name] = spread(term, name, block)
        if isinstance(mine, SecondLevel):
            found[name] = (found[name].int() - its.zero).to(torch.int8 if mine.signed else torch.uint8)
            found[f"{name}_top"] = spread(term, f"{name}_top", block)[:, :: block.weights // block.group]
        elif name == "min":  # the file's m is added
            found[name] = -found[name]
    return found


def scales_of(held: Any, grid: Any) -> list[tuple[str, Any, Any]]:
    """Names of the scales, as the type has them and as the grid has them."""
    found = [("scale", held.scale, grid.scale)]
    return [*found, ("min", held.minimum, grid.minimum)] if isinstance(held, Offset) else found


def spread(term: Coded, name: str, block: Block) -> Shaped[Tensor, "rows groups"]:
    """A parameter for every group of the type, which are never larger than the term's."""
    rows, cols = term.layout.block(term.shape)
    return term.params[name].view(term.tiles).repeat_interleave(rows, 0).repeat_interleave(cols // block.group, 1)


def read_as(name: str, shape: tuple[int, int]) -> Mapping[str, Json]:
    """The meta of a matrix of a type."""
    return coded_meta(shape, GRIDS[name], Layout(1, BLOCKS[name].group))


def term(name: str, stored: Leaves) -> Coded:
    """The term of a type's leaves. Raises BadRequest for codes that no tool writes."""
    block, grid = BLOCKS[name], GRIDS[name]
    codes, params = stored["codes"], {}
    if name == "MXFP4":
        codes = unsigned(codes, grid.table).to(torch.uint8)
    elif int(codes.max()) >= grid.levels:
        raise BadRequest(f"a code of {name} is {int(codes.max())}, above {grid.levels - 1}")
    for leaf, scale, _ in scales_of(grid, grid):
        params[leaf] = stored[leaf]
        if isinstance(scale, SecondLevel):
            params[leaf] = (params[leaf].int() + scale.zero).to(torch.uint8)
            params[f"{leaf}_top"] = stored[f"{leaf}_top"].repeat_interleave(block.weights // block.group, 1)
        elif leaf == "min":
            params[leaf] = -params[leaf]
    params = {leaf: x.reshape(-1, 1).contiguous() for leaf, x in params.items()}
    return Coded((codes.shape[0], codes.shape[1]), grid, Layout(1, block.group), codes, params)


def pack(term: Coded, block: Block, order: Shaped[Tensor, "rows"] | None) -> UInt8[Tensor, "rows nbytes"]:
    """The bytes of a matrix. `order`: which row of ours each row of the file is; a row is coded by itself, so they may move."""
    found = leaves(term, block)
    return block.pack(found if order is None else {name: leaf[order] for name, leaf in found.items()})


def described(grid: Any, layout: Layout) -> str:
    words = f"the grid {getattr(grid, 'table', None) or named(grid)!r} of {grid.levels} levels"
    if isinstance(grid, Integer) and not grid.symmetric:
        words += " with zero points"
    scale = getattr(grid, "scale", None)
    kind = getattr(scale, "name", None) or (named(scale) if scale is not None else None)
    return words + (f", scales {kind!r}" if kind else "") + f", in groups of {layout.cols or 'whole rows'}"


def named(part: Any) -> str:
    return index.name_of(part.__class__)


def nearest(grid: Any) -> str:
    """The type whose grid is most like this one, in words."""

    def unlike(name: str) -> tuple[bool, bool, int]:
        kind = Offset if isinstance(grid, Integer) and not grid.symmetric else type(grid)
        kinds = type(GRIDS[name]) is not kind, type(GRIDS[name].scale) is not type(getattr(grid, "scale", None))
        return (*kinds, abs(GRIDS[name].levels - grid.levels))

    name = min(GRIDS, key=unlike)
    scale = GRIDS[name].scale
    told = {Float: "float16", SecondLevel: "second-level", E8M0: "e8m0"}[type(scale)]
    levels = f"{GRIDS[name].levels} levels" + (" around zero" if isinstance(GRIDS[name], Integer) else "")
    return f"{name} ({named(GRIDS[name])}, {levels}, scales {told!r}, in groups of {BLOCKS[name].group})"
