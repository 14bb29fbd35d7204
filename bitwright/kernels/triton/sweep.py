"""Column loops compiled for GPUs: a program holds a few rows of one block of columns in registers and walks the columns there.

What a column does to the rest of its block is done in the registers, at once; what a block does to the columns beyond it is one
matrix product, by GPTQ itself and by `descent` here. Inside a block the numbers are those of the reference, operation for
operation (divisions rounded, nothing contracted). Grids of scalars, as kernels/lattice.py writes them. Triton's interpreter runs
the same loops on the CPU, slowly: that is how they are tested without a GPU.
"""

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

BLOCK = 128  # columns that a descent updates lazily together
WIDEST = 256  # columns of a block that registers hold
ROWS = 16  # of a program: few, because columns come one after the other and only rows keep a GPU busy
INTERPRETED = bool(triton.knobs.runtime.interpret)  # whether the loops below are compiled
UNIFORM, ASCENDING = constexpr(lattice.UNIFORM), constexpr(lattice.ASCENDING)
PLACED: WeakKeyDictionary[Coder, tuple[Tensor, Tensor, Tensor]] = WeakKeyDictionary()  # large tables, and many blocks of one coder


def gptq_block(
    block: Float[Tensor, "out b"], U: Float[Tensor, "b b"], coder: Coder, steps: list[Ints[Tensor, "_"]]
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]] | None:
    if not suits(block, coder) or block.shape[1] > WIDEST:
        return None
    table, columns, _ = placed(coder, block.device)
    return launch(gptq_columns, table, columns[torch.cat(steps).to(block.device)], block, U)


def descent(
    W: Float[Tensor, "out inp"], Q: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"], coder: Coder, relaxed: bool
) -> Float[Tensor, "out inp"] | None:
    if not suits(W, coder):
        return None
    table, columns, order = placed(coder, W.device)
    Q = Q.clone()
    R = (W - Q) @ H
    for at in order.split(BLOCK):
        pull = H[at]
        Q[:, at], change = launch(descent_columns, table, columns[at], R[:, at], pull[:, at], W.T[at], Q.T[at], RELAXED=relaxed)
        R.addmm_(change, pull, alpha=-1)
    return Q


def suits(W: Float[Tensor, "out inp"], coder: Coder) -> bool:
    return (W.is_cuda or INTERPRETED) and W.dtype in (torch.float32, torch.float64) and lattice.scalar(coder)


def placed(coder: Coder, device: torch.device) -> tuple[Float[Tensor, "g k"], Ints[Tensor, "inp 5"], Ints[Tensor, "inp"]]:
    """On a device: a coder's table; of every column (kind, levels, first, rows, across); columns in the order of its steps."""
    if coder not in PLACED or PLACED[coder][0].device != device:
        table, *columns = lattice.lattice(coder, torch.arange(coder.shape[1]))
        band, place = coder.home
        order = (band * len(place) + place).argsort()
        PLACED[coder] = table.to(device), torch.stack(columns, 1).int().to(device), order.to(device)
    return PLACED[coder]


def launch(
    loop: Any, table: Float[Tensor, "g k"], columns: Ints[Tensor, "b 5"], tile: Float[Tensor, "out b"], *more: Tensor, **how: Any
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]]:
    """Values of a block of columns, and their changes. What a loop touches column by column lies [b, out]: rows are neighbours."""
    (out, b), most = tile.shape, table.shape[1]
    values, changes = tile.new_empty(2, b, out)
    inputs = [part.contiguous() for part in (table, columns, tile, *more)]
    with torch.cuda.device_of(tile):
        loop[(triton.cdiv(out, ROWS),)](*inputs, values, changes, out, most, b, ROWS=ROWS, **how, enable_fp_fusion=False)
    return values.T, changes.T


@triton.jit
@no_type_check
def gptq_columns(table, columns, tile, U, values, errors, out, most: constexpr, b: constexpr, ROWS: constexpr):
    """`tile` is the weights as compensated so far. Beyond the last row it is repeated: one number is written twice."""
    rows, at = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), out - 1), tl.arange(0, triton.next_power_of_2(b))
    W = tl.load(tile + rows[:, None] * b + at[None], mask=at[None] < b, other=0.0)
    for j in range(b):
        w = pick(W, at, j)
        value = nearest(w, rows, table, columns + j * 5, most)
        e = divide(w - value, tl.load(U + j * b + j))
        W -= e[:, None] * tl.load(U + j * b + at, mask=at < b, other=0.0)[None]
        tl.store(values + j * out + rows, value)
        tl.store(errors + j * out + rows, e)


@triton.jit
@no_type_check
def descent_columns(
    table, columns, tile, H, W, Q, values, changes, out, most: constexpr, b: constexpr, RELAXED: constexpr, ROWS: constexpr
):
    """`tile` is R = (W - Q) H, W and Q lie transposed; see the loop above for the rows."""
    rows, at = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), out - 1), tl.arange(0, triton.next_power_of_2(b))
    R = tl.load(tile + rows[:, None] * b + at[None], mask=at[None] < b, other=0.0)
    for j in range(b):
        w, q, h = tl.load(W + j * out + rows), tl.load(Q + j * out + rows), tl.load(H + j * b + j)
        u = w + tl.where(h != 0, divide(pick(R, at, j) - (w - q) * h, tl.where(h != 0, h, 1.0)), 0.0)
        value = u if RELAXED else nearest(u, rows, table, columns + j * 5, most)
        R -= (value - q)[:, None] * tl.load(H + j * b + at, mask=at < b, other=0.0)[None]
        tl.store(values + j * out + rows, value)
        tl.store(changes + j * out + rows, value - q)


@triton.jit
@no_type_check
def pick(tile, at, j):
    """Column j: registers cannot be indexed, but a sum of one number and zeros is that number."""
    return tl.sum(tl.where(at[None] == j, tile, 0.0), 1)


@triton.jit
@no_type_check
def divide(x, y):
    """Rounded to nearest; fp32's plain division on a GPU is not."""
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
@no_type_check
def nearest(x, rows, table, column, most: constexpr):
    """The nearest point to the x of each row; `column` is where (kind, levels, first, rows, across) of their column begin."""
    kind, levels = tl.load(column), tl.load(column + 1)
    group = tl.load(column + 2) + rows // tl.load(column + 3) * tl.load(column + 4)
    start = table + group.to(tl.int64) * most
    if kind == UNIFORM:
        scale, zero = tl.load(start), tl.load(start + 1)
        steps = tl.minimum(tl.maximum(divide(x, scale.to(x.dtype)), -zero), levels - 1 - zero)
        beyond: constexpr = 1.5 * 2**23 if x.dtype == tl.float32 else 1.5 * 2**52  # so large that sums there are whole, ties even
        point = scale * ((steps + beyond) - beyond).to(tl.float32)
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
