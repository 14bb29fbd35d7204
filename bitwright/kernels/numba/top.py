"""The best k of a stream of keys: every thread keeps its own, they are merged at the end.

A heap is two arrays, keys and rows, its worst member first: the least key, among equals the highest row. It starts full of
(-inf, -1), so that what does not beat the worst member is dropped by one comparison. Rows come ascending, which makes a later
equal never better.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numba import njit
from torch import Tensor

ALONE = 2**22  # bytes read, times queries: less is done by one thread before others are awake


def best(
    part: Any, unit: int, size: int, q: int, k: int, count: int, *arguments: Any
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """part(first, last, keys, rows, count, *arguments) over `count` documents of `size` bytes, by threads in multiples of `unit`.

    The best k of all, best first, lower rows first among equals; (-inf, -1) where there are fewer.
    """
    units = -(-count // unit)
    threads = max(1, min(torch.get_num_threads(), units, size * q // ALONE))
    keys, rows = np.full((threads, q, min(k, count)), -np.inf, np.float32), np.full((threads, q, min(k, count)), -1)
    cuts = [min(count, units * i // threads * unit) for i in range(threads + 1)]

    def run(i: int) -> None:
        part(cuts[i], cuts[i + 1], keys[i], rows[i], count, *arguments)

    if threads == 1 and count:
        run(0)
    elif count:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(threads)))
    members, own = (torch.from_numpy(part).transpose(0, 1).flatten(1) for part in (keys, rows))
    by_row = own.argsort(dim=1)
    order = by_row.gather(1, members.gather(1, by_row).argsort(dim=1, descending=True, stable=True))[:, :k]
    missing = (0, k - order.shape[1])
    return (
        torch.nn.functional.pad(members.gather(1, order), missing, value=-torch.inf),
        torch.nn.functional.pad(own.gather(1, order), missing, value=-1),
    )


@njit(cache=True)
@no_type_check
def beaten(values, count, floor):
    found = False
    for i in range(count):
        found = found | (values[i] > floor)
    return found


@njit(cache=True)
@no_type_check
def keep(values, count, first, keys, rows, q, allowed):
    """Offer values[:count], the keys of rows first, first + 1, ..., to query q."""
    if keys[q, 0] > -np.inf and not beaten(values, count, values.dtype.type(keys[q, 0])):  # compared in their own, narrow type
        return
    for i in range(count):
        key, row = np.float32(values[i]), first + i
        if key > keys[q, 0] and (len(allowed) == 0 or allowed[row >> 3] >> (row & 7) & 1):
            replace(keys, rows, q, key, row)


@njit(cache=True)
@no_type_check
def replace(keys, rows, q, key, row):
    """The worst member leaves, (key, row) sinks from its place."""
    at, size = 0, keys.shape[1]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and worse(keys, rows, q, child + 1, keys[q, child], rows[q, child]):
            child += 1
        if not worse(keys, rows, q, child, key, row):
            break
        keys[q, at], rows[q, at] = keys[q, child], rows[q, child]
        at = child
    keys[q, at], rows[q, at] = key, row


@njit(cache=True)
@no_type_check
def worse(keys, rows, q, i, key, row):
    return keys[q, i] < key or (keys[q, i] == key and rows[q, i] > row)


@njit(cache=True)
@no_type_check
def none(allowed, first, count):
    """Whether no row from `first` on, a multiple of 8, is allowed; an empty bitmap allows all."""
    if len(allowed) == 0:
        return False
    for i in range(first >> 3, (first + count + 7) >> 3):  # noqa: SIM110
        if allowed[i]:
            return False
    return True
