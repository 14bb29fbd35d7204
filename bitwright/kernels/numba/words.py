"""Products with sums of learned vectors on the CPU (card: pv-tuning): a run of inputs meets every word once, outputs look up.

    y_r = sum_g s_rg sum_{i in g} sum_k T[i, k, c_rik],     T[i, k, w] = <x_i, C_k[w]>

The table T costs words / out of a product with the matrix itself; after it a code costs one addition for `v` weights.
"""

from typing import no_type_check

import numpy as np
from numba import njit, prange

TILE = 64  # outputs, as in matmul.py


@njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
@no_type_check
def gemv(x, sums, y, group, codes, scale, _, books):
    """y [n, out] += x W^t; books [K, v, words], codes [tiles, runs K, 64] with the digits of a run side by side."""
    K, v, count = books.shape
    runs, steps = x.shape[1] // v, group // v
    T = np.empty((runs, K, count), np.float32)
    for n in range(x.shape[0]):
        for i in prange(runs):
            for k in range(K):
                T[i, k, :] = np.float32(0)
                for j in range(v):
                    xj = x[n, i * v + j]
                    for w in range(count):
                        T[i, k, w] += xj * books[k, j, w]
        for t in prange(codes.shape[0]):
            acc, total = np.empty(TILE, np.float32), np.zeros(TILE, np.float32)
            for g in range(scale.shape[1]):
                acc[:] = np.float32(0)
                for i in range(g * steps, (g + 1) * steps):
                    for k in range(K):
                        for l in range(TILE):
                            acc[l] += T[i, k, codes[t, i * K + k, l]]
                for l in range(TILE):
                    total[l] += scale[t, g, l] * acc[l]
            for l in range(TILE):
                y[n, t * TILE + l] += total[l]
