"""The k largest of many keys, lower places first among equals: k times the largest of 1,024, then of what the parts found.

A key and its place are one number of 64 bits, the place counted backwards in the lower half, so that one maximum orders both.
Sorting whole rows of keys costs a query of 100 million documents a tenth of its time; this a hundredth.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int32, Int64
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels.triton.scan_few import ABSENT

PART = 1024  # keys of a program
MOST = 128  # from more rounds on a sort is faster
NONE = constexpr(-(2**63))  # below every key


def top(
    keys: Int32[Tensor, "q n"], k: int, chosen: Int32[Tensor, "q c"] | None = None
) -> tuple[Int32[Tensor, "q _"], Int32[Tensor, "q _"] | Int64[Tensor, "q _"]]:
    """The k largest (or all) and where they are: the place in the row (32 bits); where the row holds the `chosen` tiles, the
    document (64 bits), -1 for one that is absent."""
    (q, n), k = keys.shape, min(k, keys.shape[1])
    tile = 0 if chosen is None else n // chosen.shape[1]
    if k > MOST:
        places = torch.arange(n, device=keys.device).expand(q, n)
        if chosen is not None:
            places = chosen.long().gather(1, places // tile) * tile + places % tile
        at = ((keys.long() << 32) + (0xFFFFFFFF - places)).sort(1, descending=True).indices[:, :k]
        found, rows = keys.gather(1, at), places.gather(1, at)
        return found, rows.int() if chosen is None else rows.masked_fill_(found == ABSENT.value, -1)
    left: Tensor = keys
    kinds = torch.int32, torch.int64 if chosen is not None else torch.int32
    found, rows = (torch.empty(q, k, dtype=kind, device=keys.device) for kind in kinds)
    while True:
        width = left.shape[1]
        parts = -(-width // PART)
        into = found if parts == 1 else torch.empty(q, parts * k, dtype=torch.int64, device=keys.device)
        top_kernel[(q * parts,)](left, chosen, into, rows, width, parts, tile, K=k, PART=PART, LAST=parts == 1, num_warps=4)
        if parts == 1:
            return found, rows
        left, chosen = into, None


@triton.jit
@no_type_check
def top_kernel(keys, chosen, found, rows, width, parts, tile, K: constexpr, PART: constexpr, LAST: constexpr):
    """One part of one row: keys, or keys with their places, to the K largest with theirs."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    at = part * PART + tl.arange(0, PART)
    here = at < width
    if keys.dtype.element_ty == tl.int64:
        pairs = tl.load(keys + row.to(tl.int64) * width + at, mask=here, other=NONE)
    else:
        key = tl.load(keys + row.to(tl.int64) * width + at, mask=here, other=0).to(tl.int64)
        place = at.to(tl.int64)
        if chosen is not None:
            place = tl.load(chosen + row * (width // tile) + at // tile, mask=here, other=0).to(tl.int64) * tile + at % tile
        pairs = tl.where(here, (key << 32) + (0xFFFFFFFF - place), NONE)
    for i in range(K):
        best = tl.max(pairs, 0)
        if LAST:
            largest = (best >> 32).to(tl.int32)
            absent = (tile > 0) & (largest == ABSENT)
            tl.store(found + row * K + i, largest)
            tl.store(rows + row * K + i, tl.where(absent, -1, 0xFFFFFFFF - (best & 0xFFFFFFFF)))
        else:
            tl.store(found + (row * parts + part).to(tl.int64) * K + i, best)
        pairs = tl.where(pairs == best, NONE, pairs)
