"""Column loops on a GPU: one program per few rows, a whole lazy block of columns in its registers.

A register tile cannot be indexed by a running column, so column j is read as the sum of the tile under the mask j, which costs
nothing beside the update of the tile itself. What lies right of a block is left to one matrix product per block, as in the
reference; q, k and v or gate and up, stacked into one matrix, are one launch.
"""

from typing import no_type_check
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.coder import Coder
from bitwright.kernels.lattice import UNIFORM, lattice, scalar

ROWS, WIDEST, LAZY = 16, 256, 64  # rows of a program; columns it can hold; columns of a lazy block of descent
KNOWN: "WeakKeyDictionary[Coder, tuple[Tensor, Tensor, int]]" = WeakKeyDictionary()


def gptq_block(
    block: Float[Tensor, "out b"], U: Float[Tensor, "b b"], coder: Coder, steps: list[Ints[Tensor, "_"]]
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]] | None:
    if not suits(block, coder) or block.shape[1] > WIDEST:
        return None
    W, E, U = block.clone(memory_format=torch.contiguous_format), torch.empty_like(block).contiguous(), U.contiguous()
    table, columns, points = on_device(coder, torch.cat(steps), block.device)
    gptq_kernel[(triton.cdiv(len(W), ROWS),)](
        W, E, U, table, columns, len(W), table.shape[1],
        COUNT=W.shape[1], B=wide(W.shape[1]), R=ROWS, POINTS=points, ROUND=magic(W.dtype),
    )  # fmt: skip
    return W, E


def descent(
    W: Float[Tensor, "out inp"], Q: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"], coder: Coder, relaxed: bool
) -> Float[Tensor, "out inp"] | None:
    if not suits(W, coder):
        return None
    Q = Q.clone()
    R = (W - Q) @ H
    for cols in torch.cat(coder.steps()).to(W.device).split(LAZY):
        rest, values, change, target = (x[:, cols].contiguous() for x in (R, Q, Q, W))
        table, columns, points = on_device(coder, cols, W.device)
        descent_kernel[(triton.cdiv(len(W), ROWS),)](
            target, values, rest, change, H[cols][:, cols].contiguous(), table, columns, len(W), table.shape[1],
            COUNT=len(cols), B=wide(len(cols)), R=ROWS, POINTS=points, ROUND=magic(W.dtype), RELAXED=relaxed,
        )  # fmt: skip
        Q[:, cols] = values
        R -= change @ H[cols]
    return Q


def suits(W: Float[Tensor, "out inp"], coder: Coder) -> bool:
    runs = W.is_cuda or triton.knobs.runtime.interpret
    return runs and W.dtype in (torch.float32, torch.float64) and scalar(coder)


def wide(count: int) -> int:
    return max(16, triton.next_power_of_2(count))


def magic(dtype: torch.dtype) -> float:
    """What added and taken away again leaves a number rounded to an integer, halves to even."""
    return 1.5 * 2.0**23 if dtype == torch.float32 else 1.5 * 2.0**52


def on_device(coder: Coder, cols: Ints[Tensor, "b"], device: torch.device) -> tuple[Tensor, Ints[Tensor, "b 5"], int]:
    """All groups; kind, levels, first, rows and across of these columns; points of a table, 0 where all grids are uniform."""
    if coder not in KNOWN:
        found = lattice(coder, torch.arange(coder.shape[1]))
        columns = torch.stack(found[1:], 1).int().to(device)
        points = 0 if (found.kind == UNIFORM).all() else triton.next_power_of_2(found.table.shape[1])
        KNOWN[coder] = found.table.to(device), columns, points
    table, columns, points = KNOWN[coder]
    return table, columns[cols.to(device)], points


@triton.jit
@no_type_check
def snap(x, r, j, table, columns, most, POINTS: tl.constexpr, ROUND: tl.constexpr):
    """Nearest storable values of column j, one per row."""
    kind, levels = tl.load(columns + j * 5), tl.load(columns + j * 5 + 1)
    first, rows, across = tl.load(columns + j * 5 + 2), tl.load(columns + j * 5 + 3), tl.load(columns + j * 5 + 4)
    group = table + (first + r // rows * across) * most
    scale, zero = tl.load(group), tl.load(group + 1)
    if POINTS > 0:
        scale = tl.where(kind == 0, scale, 1.0)
    at = x / scale.to(x.dtype)
    if x.dtype == tl.float32:
        at = tl.div_rn(x, scale)
    at = tl.minimum(tl.maximum(at, -65536.0), 65536.0)
    code = ((at + ROUND) - ROUND).to(tl.float32) + zero
    code = tl.minimum(tl.maximum(code, 0.0), levels.to(tl.float32) - 1.0)
    value = scale * (code - zero)
    if POINTS > 0:
        p = tl.arange(0, POINTS)
        listed = tl.load(group[:, None] + p[None, :], mask=p[None, :] < levels, other=float("inf"))
        best = tl.argmin(tl.abs(listed.to(x.dtype) - x[:, None]), 1)
        nearest = tl.sum(tl.where(p[None, :] == best[:, None], listed, 0.0), 1)
        value = tl.where(kind == 0, value, nearest)
    return value.to(x.dtype)


@triton.jit
@no_type_check
def column(tile, here):
    return tl.sum(tl.where(here, tile, 0.0), 1)


@triton.jit
@no_type_check
def gptq_kernel(
    W, E, U, table, columns, out, most,
    COUNT: tl.constexpr, B: tl.constexpr, R: tl.constexpr, POINTS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """W becomes the chosen values, E the errors to push on."""
    r, c = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, B)
    place, inside = r[:, None] * COUNT + c[None, :], (r[:, None] < out) & (c[None, :] < COUNT)
    rows = tl.minimum(r, out - 1)
    w = tl.load(W + place, mask=inside, other=0.0)
    e = tl.zeros_like(w)
    for j in range(COUNT):
        here = c[None, :] == j
        x = column(w, here)
        value = snap(x, rows, j, table, columns, most, POINTS, ROUND)
        error = (x - value) / tl.load(U + j * COUNT + j)
        w -= error[:, None] * tl.load(U + j * COUNT + c, mask=(c > j) & (c < COUNT), other=0.0)[None, :]
        w, e = tl.where(here, value[:, None], w), tl.where(here, error[:, None], e)
    tl.store(W + place, w, mask=inside)
    tl.store(E + place, e, mask=inside)


@triton.jit
@no_type_check
def descent_kernel(
    W, Q, REST, CHANGE, H, table, columns, out, most,
    COUNT: tl.constexpr, B: tl.constexpr, R: tl.constexpr, POINTS: tl.constexpr, ROUND: tl.constexpr, RELAXED: tl.constexpr,
):  # fmt: skip
    """Q becomes the new values, CHANGE what they moved by; REST, (W - Q) H of these columns, follows every step."""
    r, c = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, B)
    place, inside = r[:, None] * COUNT + c[None, :], (r[:, None] < out) & (c[None, :] < COUNT)
    rows = tl.minimum(r, out - 1)
    w, q, rest = (
        tl.load(W + place, mask=inside, other=0.0),
        tl.load(Q + place, mask=inside, other=0.0),
        tl.load(REST + place, mask=inside, other=0.0),
    )
    moved = tl.zeros_like(q)
    for j in range(COUNT):
        here = c[None, :] == j
        h, x, old = tl.load(H + j * COUNT + j), column(w, here), column(q, here)
        u = x + tl.where(h != 0, (column(rest, here) - (x - old) * h) / tl.where(h != 0, h, 1.0), 0.0)
        if not RELAXED:
            u = snap(u, rows, j, table, columns, most, POINTS, ROUND)
        step = u - old
        rest -= step[:, None] * tl.load(H + j * COUNT + c, mask=c < COUNT, other=0.0)[None, :]
        q, moved = tl.where(here, u[:, None], q), tl.where(here, step[:, None], moved)
    tl.store(Q + place, q, mask=inside)
    tl.store(CHANGE + place, moved, mask=inside)
