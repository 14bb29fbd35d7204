"""The nearest of all sums of two lists of vectors on the CPU: every pair screened in fp32, what comes close compared in fp64.

    |x - a_i - b_j|^2 - |x|^2  =  (|a_i|^2 - 2 x a_i) + (|b_j|^2 - 2 x b_j) + 2 a_i b_j

The last table is the same for all x, so a pair costs one addition and one comparison, whatever the length of the vectors.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float as Floats
from jaxtyping import Float64, Int64
from numba import njit, prange
from torch import Tensor

from bitwright.kernels.numba.sweep import compiled


def nearest_sum(x: Float64[Tensor, "n w"], first: Floats[Tensor, "i w"], last: Floats[Tensor, "j w"]) -> Int64[Tensor, "n"] | None:
    if x.device.type != "cpu":
        return None
    a, b, codes = first.double(), last.double(), torch.empty(len(x), dtype=torch.int64)
    cross = (2 * b @ a.T).float()
    compiled(search, x.contiguous().numpy(), a.contiguous().numpy(), b.contiguous().numpy(), cross.numpy(), codes.numpy())
    return codes


@njit(parallel=True, cache=True, error_model="numpy")
@no_type_check
def search(x, a, b, cross, codes):
    """codes [n] = i + j * len(a), the lowest among equals; cross [j, i] = 2 a_i b_j."""
    n, width = x.shape
    I, J = len(a), len(b)
    reach_a, reach_b = 0.0, 0.0
    for i in range(I):
        reach_a = max(reach_a, (a[i] * a[i]).sum())
    for j in range(J):
        reach_b = max(reach_b, (b[j] * b[j]).sum())
    for r in prange(n):
        own, least = np.empty(I, np.float32), np.empty(I, np.float32)
        size = 0.0
        for k in range(width):
            size += x[r, k] * x[r, k]
        for i in range(I):
            total = 0.0
            for k in range(width):
                total += a[i, k] * (a[i, k] - 2 * x[r, k])
            own[i], least[i] = total, np.float32(np.inf)
        for j in range(J):
            total = 0.0
            for k in range(width):
                total += b[j, k] * (b[j, k] - 2 * x[r, k])
            beside = np.float32(total)
            for i in range(I):
                least[i] = min(least[i], cross[j, i] + beside)
        best = np.float32(np.inf)
        for i in range(I):
            least[i] += own[i]
            best = min(best, least[i])
        near = np.float32(best + 2e-6 * (np.sqrt(size) + np.sqrt(reach_a) + np.sqrt(reach_b)) ** 2)
        nearest, code = np.inf, 0
        for i in range(I):
            if least[i] <= near:
                for j in range(J):
                    gap = 0.0
                    for k in range(width):
                        e = x[r, k] - a[i, k] - b[j, k]
                        gap += e * e
                    if gap < nearest or (gap == nearest and i + j * I < code):
                        nearest, code = gap, i + j * I
        codes[r] = code
