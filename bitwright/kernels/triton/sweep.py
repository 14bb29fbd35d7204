"""Column loops compiled for GPUs: a lane holds one row of a block of columns in its registers and walks the columns there.

What a column does to the rest of its block is done in the registers, at once; what a block does to the columns beyond it is one
matrix product, by GPTQ itself and by `descent` here. What the next column needs is loaded while this one is rounded. Inside a block
the numbers are those of the reference, operation for operation (divisions rounded, nothing contracted). Grids of scalars, as
kernels/lattice.py writes them. Triton's interpreter runs the same loops on the CPU, slowly: so they are tested without a GPU.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, no_type_check
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor
from triton.language import constexpr

from bitwright.coder import Coder
from bitwright.kernels import lattice
from bitwright.kernels.devices import coarse_products
from bitwright.linalg import LARGE

BLOCK, WIDE = 128, 1024  # columns that a descent updates lazily together: what is near at once, all of R less often
WIDEST = 256  # columns of a block that registers hold
ROWS = 32  # of a program, which is one warp: columns come one after the other, only rows keep a GPU busy
SUB = constexpr(32)  # columns among which the next is looked for
INTERPRETED = bool(triton.knobs.runtime.interpret)  # whether the loops below are compiled
UNIFORM, ASCENDING = constexpr(lattice.UNIFORM), constexpr(lattice.ASCENDING)
PLACED: WeakKeyDictionary[Coder, tuple[Tensor, Tensor, Tensor | None]] = (
    WeakKeyDictionary()
)  # large tables, and many blocks of one coder


def gptq_block(
    block: Float[Tensor, "out b"], U: Float[Tensor, "b b"], coder: Coder, cols: Ints[Tensor, "b"], widths: Sequence[int]
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]] | None:
    if not suits(block, coder) or block.shape[1] > WIDEST:
        return None
    table, columns, _ = placed(coder, block.device)
    tile = block.T.contiguous()
    errors = torch.empty_like(tile)
    launch(gptq_columns, tile, table, columns[cols], U, errors)
    return tile.T, errors.T


def descent(
    W: Float[Tensor, "out inp"],
    Q: Float[Tensor, "out inp"],
    R: Float[Tensor, "out inp"],
    H: Float[Tensor, "inp inp"],
    coder: Coder,
    relaxed: bool,
) -> tuple[Float[Tensor, "out inp"], Float[Tensor, "out inp"]] | None:
    if not suits(W, coder):
        return None
    table, columns, order = placed(coder, W.device)
    if order is not None:  # once, so that a block is a slice
        W, Q, R, H, columns = W[:, order], Q[:, order], R[:, order], H[order][:, order], columns[order]
    Wt, Qt, Rt = W.T.contiguous(), *(part.T.clone(memory_format=torch.contiguous_format) for part in (Q, R))
    with coarse_products() if len(H) >= LARGE else nullcontext():
        for first in range(0, len(H), WIDE):
            wide = slice(first, first + WIDE)
            tile, changes = Rt[wide].clone(), torch.empty_like(Rt[wide])
            for at in range(first, min(first + WIDE, len(H)), BLOCK):
                here, own = slice(at, min(at + BLOCK, first + WIDE)), slice(at - first, at - first + BLOCK)
                made = Wt[here], Qt[here], changes[own]
                launch(descent_columns, tile[own], table, columns[here], H[here, here], *made, RELAXED=relaxed)
                tile[at - first + BLOCK :].addmm_(H[here, at + BLOCK : first + WIDE].T, changes[own], alpha=-1)
            Rt.addmm_(H[wide].T, changes, alpha=-1)
    back = slice(None) if order is None else order.argsort()
    return Qt[back].T.contiguous(), Rt[back].T.contiguous()


def suits(W: Float[Tensor, "out inp"], coder: Coder) -> bool:
    return (W.is_cuda or INTERPRETED) and W.dtype in (torch.float32, torch.float64) and lattice.scalar(coder)


def placed(coder: Coder, device: torch.device) -> tuple[Float[Tensor, "g k"], Ints[Tensor, "inp 5"], Ints[Tensor, "inp"] | None]:
    """On a device: a coder's table; of every column (kind, levels, first, rows, across); the order of its steps, None: natural."""
    if coder not in PLACED or PLACED[coder][0].device != device:
        table, *columns = lattice.lattice(coder, torch.arange(coder.shape[1]))
        band, place = coder.home
        order = (band * len(place) + place).argsort()
        moved = None if bool((order[1:] > order[:-1]).all()) else order.to(device)
        PLACED[coder] = table.to(device), torch.stack(columns, 1).int().to(device), moved
    return PLACED[coder]


def launch(
    loop: Any,
    tile: Float[Tensor, "b out"],
    table: Float[Tensor, "g k"],
    columns: Ints[Tensor, "b 5"],
    square: Float[Tensor, "b b"],
    *more: Float[Tensor, "b out"],
    **how: Any,
) -> None:
    """One block of columns. All that belongs to rows lies transposed: rows are neighbours."""
    b, out = tile.shape
    square = square if square.stride(1) == 1 else square.contiguous()
    with torch.cuda.device_of(tile):
        loop[(triton.cdiv(out, ROWS),)](
            tile, table, columns, square, square.stride(0), *more, out, table.shape[1], b, ROWS=ROWS, **how,
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit
@no_type_check
def gptq_columns(tile, table, columns, U, stride, errors, out, most: constexpr, b: constexpr, ROWS: constexpr):
    """`tile`: weights as compensated so far, replaced by their values. Rows beyond the last repeat it and write what it writes."""
    rows = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), out - 1)
    W = parts(tile, rows, out, b, 0)
    kind, levels, start, scale, zero = column(rows, table, columns, most)
    for a in tl.static_range((b + SUB - 1) // SUB):
        for i in range(SUB if b - a * SUB > SUB else b - a * SUB):
            j = a * SUB + i
            following = tl.minimum(j + 1, b - 1)
            kind_ahead, levels_ahead, start_ahead, scale_ahead, zero_ahead = column(rows, table, columns + following * 5, most)
            w = pick(W[0], i)
            value = nearest(w, kind, levels, start, scale, zero, most)
            e = divide(w - value, tl.load(U + j * stride + j))
            W = pushed(W, e, U + j * stride, b, a, (b + SUB - 1) // SUB - a)
            tl.store(tile + j * out + rows, value)
            tl.store(errors + j * out + rows, e)
            kind, levels, start, scale, zero = kind_ahead, levels_ahead, start_ahead, scale_ahead, zero_ahead
        W = W[1:]


@triton.jit
@no_type_check
def descent_columns(
    tile, table, columns, H, stride, W, Q, changes, out, most: constexpr, b: constexpr, RELAXED: constexpr, ROWS: constexpr
):
    """`tile` is R = (W - Q) H, and Q is replaced; see the loop above for the rows."""
    rows = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), out - 1)
    R = parts(tile, rows, out, b, 0)
    kind, levels, start, scale, zero = column(rows, table, columns, most)
    w, q = tl.load(W + rows), tl.load(Q + rows)
    for a in tl.static_range((b + SUB - 1) // SUB):
        for i in range(SUB if b - a * SUB > SUB else b - a * SUB):
            j = a * SUB + i
            following = tl.minimum(j + 1, b - 1)
            kind_ahead, levels_ahead, start_ahead, scale_ahead, zero_ahead = column(rows, table, columns + following * 5, most)
            w_ahead, q_ahead = tl.load(W + following * out + rows), tl.load(Q + following * out + rows)
            h = tl.load(H + j * stride + j)
            u = w + tl.where(h != 0, divide(pick(R[0], i) - (w - q) * h, tl.where(h != 0, h, 1.0)), 0.0)
            value = u if RELAXED else nearest(u, kind, levels, start, scale, zero, most)
            R = pushed(R, value - q, H + j * stride, b, a, (b + SUB - 1) // SUB - a)
            tl.store(Q + j * out + rows, value)
            tl.store(changes + j * out + rows, value - q)
            kind, levels, start, scale, zero = kind_ahead, levels_ahead, start_ahead, scale_ahead, zero_ahead
            w, q = w_ahead, q_ahead
        R = R[1:]


@triton.jit
@no_type_check
def parts(tile, rows, out, b: constexpr, a: constexpr):
    """Columns from a SUB on, SUB at a time: a tuple of tensors [rows, SUB]. Lanes are rows, registers columns."""
    at = a * SUB + tl.arange(0, SUB)[None]
    here = tl.load(tile + at * out + rows[:, None], mask=at < b, other=0.0)
    return (here,) if (a + 1) * SUB >= b else (here,) + parts(tile, rows, out, b, a + 1)


@triton.jit
@no_type_check
def pushed(tiles, change, line, b: constexpr, a: constexpr, COUNT: constexpr):
    """Every tile minus change times its part of a line of the square."""
    at = a * SUB + tl.arange(0, SUB)
    here = tiles[0] - change[:, None] * tl.load(line + at, mask=at < b, other=0.0)[None]
    return (here,) if COUNT == 1 else (here,) + pushed(tiles[1:], change, line, b, a + 1, COUNT - 1)


@triton.jit
@no_type_check
def pick(tile, i):
    """Column i: registers cannot be indexed, but a sum of one number and zeros is that number."""
    return tl.sum(tl.where(tl.arange(0, SUB)[None] == i, tile, 0.0), 1)


@triton.jit
@no_type_check
def divide(x, y):
    """Rounded to nearest; fp32's plain division on a GPU is not."""
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
@no_type_check
def column(rows, table, entry, most: constexpr):
    """Of a column, whose (kind, levels, first, rows, across) begin at `entry`: kind, levels, and per row where its points begin."""
    group = tl.load(entry + 2) + rows // tl.load(entry + 3) * tl.load(entry + 4)
    start = table + group.to(tl.int64) * most
    return tl.load(entry), tl.load(entry + 1), start, tl.load(start), tl.load(start + 1)


@triton.jit
@no_type_check
def nearest(x, kind, levels, start, scale, zero, most: constexpr):
    """The nearest point to the x of each row."""
    if kind == UNIFORM:
        beyond: constexpr = 1.5 * 2**23 if x.dtype == tl.float32 else 1.5 * 2**52  # so large that sums there are whole, ties even
        whole = (zero.to(x.dtype) + beyond) - beyond
        rest = zero - whole  # a minimum need not be a multiple of the step: what is left over moves the decision points
        steps = tl.minimum(tl.maximum(divide(x, scale.to(x.dtype)) + rest, -whole), levels - 1 - whole)
        point = scale * (((steps + beyond) - beyond) - rest).to(tl.float32)
    else:
        k = tl.arange(0, triton.next_power_of_2(most))[None]
        points = tl.load(start[:, None] + k, mask=k < levels, other=float("inf"))
        if kind == ASCENDING:  # every midpoint below x is a point passed; x on a midpoint stays at the lower point
            after = tl.load(start[:, None] + k + 1, mask=k + 1 < levels, other=float("inf"))
            code = tl.sum(((points + after) * 0.5 < x[:, None]).to(tl.int32), 1)
        else:
            code = tl.argmin(tl.abs(x[:, None] - points), 1)
        point = tl.load(start + code)
    return point.to(x.dtype)
