"""Exact k-means of sorted numbers, compiled for the CPU: groups in parallel, each by a dynamic program over its runs."""

from typing import no_type_check

import numpy as np
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from bitwright.kernels.numba.sweep import compiled


def kmeans(x: Float[Tensor, "g n"], price: Float[Tensor, "g n"], count: int) -> Float[Tensor, "g k"] | None:
    if x.device.type != "cpu":
        return None
    found = x.new_empty(len(x), count)
    compiled(kmeans_rows, x.contiguous().numpy(), price.contiguous().numpy(), found.numpy())
    return found


@njit(cache=True, inline="always")
@no_type_check
def cost(sums, i, j):
    """Least weighted squared error of the numbers i .. j-1 about one point."""
    mass, pull = sums[0, j] - sums[0, i], sums[1, j] - sums[1, i]
    return max(sums[2, j] - sums[2, i] - pull * pull / mass, 0.0) if mass > 0 else 0.0


@njit(parallel=True, cache=True)
@no_type_check
def kmeans_rows(X, F, found):
    groups, n = X.shape
    k = found.shape[1]
    for g in prange(groups):
        sums = np.zeros((3, n + 1))
        for j in range(n):
            sums[0, j + 1] = sums[0, j] + F[g, j]
            sums[1, j + 1] = sums[1, j] + F[g, j] * X[g, j]
            sums[2, j + 1] = sums[2, j] + F[g, j] * X[g, j] * X[g, j]
        least, before = np.empty(n + 1), np.empty(n + 1)
        cut = np.zeros((k, n + 1), np.int32)  # of m + 1 clusters of the first j numbers: where the last begins
        for j in range(n + 1):
            least[j] = cost(sums, 0, j)
        stride = 1
        while stride <= n:
            stride *= 2
        for m in range(1, k):
            before[:] = least
            step = stride
            while step >= 1:  # the best cut grows with j: those of neighbours bound it
                for j in range(0 if step == stride else step, n + 1, 2 * step):
                    low = cut[m, j - step] if j >= step else 0
                    high = cut[m, j + step] if j + step <= n else j
                    best, at = np.inf, low
                    for i in range(low, min(high, j) + 1):
                        loss = before[i] + cost(sums, i, j)
                        if loss < best:
                            best, at = loss, i
                    least[j], cut[m, j] = best, at
                step //= 2
        end, spare = n, X[g, n - 1]
        for m in range(k - 1, -1, -1):
            start = cut[m, end]
            mass, pull, total = 0.0, 0.0, 0.0
            for j in range(start, end):
                mass += F[g, j]
                pull += F[g, j] * X[g, j]
                total += X[g, j]
            if mass > 0:
                spare = pull / mass
            elif end > start:
                spare = total / (end - start)
            found[g, m] = spare
            end = start
