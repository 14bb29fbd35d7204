"""Column loops compiled for the CPU: rows in parallel, GPTQ's in tiles that stay in the cache, descent's one by one.

Grids of scalars, as kernels/lattice.py writes them. The numbers are those of the reference, operation for operation (no
fast-math, no contraction), so codes agree except where the sums of a matrix product round differently. Grids of vectors are
left to the reference.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from numba import get_num_threads, njit, prange, set_num_threads
from torch import Tensor

from bitwright.coder import Coder
from bitwright.kernels.lattice import ASCENDING, UNIFORM, lattice, scalar

TILE = 64  # rows
BEFORE = torch.get_num_threads()
STARTED_WITH = get_num_threads()
torch.set_num_threads(BEFORE)  # numba and torch share one OpenMP, and starting numba's threads changes torch's number


def gptq_block(
    block: Float[Tensor, "out b"], U: Float[Tensor, "b b"], coder: Coder, cols: Ints[Tensor, "b"], widths: Sequence[int]
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]] | None:
    if not suits(block, coder):
        return None
    W, E = block.contiguous().clone(), torch.empty_like(block, memory_format=torch.contiguous_format)
    compiled(gptq_rows, W.numpy(), E.numpy(), U.contiguous().numpy(), *arrays(coder, cols))
    return W, E


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
    Q, R = Q.contiguous().clone(), R.contiguous().clone()
    order = torch.cat(coder.steps())
    compiled(
        descent_rows,
        W.contiguous().numpy(),
        Q.numpy(),
        R.numpy(),
        H.contiguous().numpy(),
        order.numpy(),
        relaxed,
        *arrays(coder, order),
    )
    return Q, R


def compiled(loop: Any, *arguments: Any, most: int = STARTED_WITH) -> None:
    """Run a loop on as many threads as torch uses (`most` at most), and leave torch's number as it was."""
    count = torch.get_num_threads()
    set_num_threads(max(1, min(count, most)))
    loop(*arguments)
    torch.set_num_threads(count)


def suits(W: Float[Tensor, "out inp"], coder: Coder) -> bool:
    return W.device.type == "cpu" and W.dtype in (torch.float32, torch.float64) and scalar(coder)


def arrays(coder: Coder, cols: Ints[Tensor, "b"]) -> tuple[np.ndarray, ...]:
    return tuple(part.numpy() for part in lattice(coder, cols))


@njit(cache=True, inline="always")
@no_type_check
def snap(x, table, g, kind, count):
    if kind == UNIFORM:
        scale, zero = table[g, 0], table[g, 1]
        whole = np.rint(zero)  # a minimum need not be a multiple of the step: what is left over moves the decision points
        step = np.rint(x / scale + (zero - whole))
        step = min(max(step, -whole), count - 1.0 - whole)
        return scale * (np.float32(step) - (zero - whole))
    best = table[g, 0]
    if kind == ASCENDING:
        for k in range(1, count):
            if (table[g, k] + best) * np.float32(0.5) >= x:
                break
            best = table[g, k]
        return best
    gap = abs(x - best)
    for k in range(1, count):
        other = abs(x - table[g, k])
        if other < gap:
            gap, best = other, table[g, k]
    return best


@njit(parallel=True, cache=True)
@no_type_check
def gptq_rows(W, E, U, table, kind, count, first, rows, across):
    """W [out, b] becomes the chosen values, E the errors to push on. Some rows at a time, turned, so that a register holds the
    same column of many rows."""
    out, b = W.shape
    for t in prange((out + TILE - 1) // TILE):
        start, here = t * TILE, min(TILE, out - t * TILE)
        w, e, v = np.zeros((b, TILE), W.dtype), np.zeros(TILE, W.dtype), np.zeros(TILE, np.float32)
        scale, whole, rest = np.ones(TILE, np.float32), np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
        for l in range(here):
            for j in range(b):
                w[j, l] = W[start + l, j]
        for j in range(b):
            top, pivot = np.float32(count[j] - 1), U[j, j]
            if kind[j] == UNIFORM:
                for l in range(here):
                    g = first[j] + (start + l) // rows[j] * across[j]
                    scale[l], whole[l] = table[g, 0], np.rint(table[g, 1])
                    rest[l] = table[g, 1] - whole[l]
                for l in range(TILE):
                    step = np.rint(w[j, l] / scale[l] + rest[l])
                    v[l] = scale[l] * (np.float32(min(max(step, -whole[l]), top - whole[l])) - rest[l])
            else:
                for l in range(here):
                    g = first[j] + (start + l) // rows[j] * across[j]
                    v[l] = snap(w[j, l], table, g, kind[j], count[j])
            for l in range(TILE):
                e[l] = (w[j, l] - v[l]) / pivot
            for l in range(here):
                W[start + l, j], E[start + l, j] = v[l], e[l]
            for k in range(j + 1, b):
                u = U[j, k]
                for l in range(TILE):
                    w[k, l] -= e[l] * u


@njit(parallel=True, cache=True)
@no_type_check
def descent_rows(W, Q, R, H, order, relaxed, table, kind, count, first, rows, across):
    """One sweep over Q; R = (W - Q) H is kept up to date. An unchanged column costs nothing."""
    for r in prange(W.shape[0]):
        for i in range(order.shape[0]):
            j = order[i]
            h, u = H[j, j], W[r, j]
            if h != 0:
                u += (R[r, j] - (W[r, j] - Q[r, j]) * h) / h
            if not relaxed:
                g = first[i] + r // rows[i] * across[i]
                u = snap(u, table, g, kind[i], count[i])
            change = u - Q[r, j]
            if change != 0:
                Q[r, j] = u
                for k in range(W.shape[1]):
                    R[r, k] -= change * H[j, k]
