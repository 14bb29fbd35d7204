"""Search in codes on a GPU: they are read as they lie, nothing is prepared.

Two passes instead of a list of all scores. The first keeps the best key of every tile of documents, the second writes all keys of
the k best tiles of a query. The k best documents are among them: say one lies in a tile that is not. Then each of k other tiles
has a better key, or as good a one in lower rows; so k documents come before it.

A few queries are scanned one at a time, as fast as memory gives the codes; many at once, as fast as tensor cores multiply.
Keys are whole numbers that order as the scores do: sums of bytes, minus distances, or the bits of fp32 scores.
"""

from collections.abc import Callable

import torch
import triton
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from bitwright.kernels.scanning import FAR, Blocked, Found, Rounded
from bitwright.kernels.triton.form import assembles
from bitwright.kernels.triton.scan_few import ABSENT, LOOKUP, POPULATION, bits_kernel, lookup_kernel
from bitwright.kernels.triton.scan_many import many, of_bits, of_tables
from bitwright.kernels.triton.scan_top import top

TILE = 4096  # documents
ROOM = 2**26  # keys held at a time
STEPS = 4, 2, 1  # rows of a block that are loaded together
MANY_BITS, MANY_NIBBLES = 16, 64  # queries from which on a matrix product is faster (estimated, not measured)
ASSEMBLED = True  # whether NVIDIA's own instructions are written into the kernels: a bench may say no
Launch = Callable[[int, int, Int32[Tensor, "q c"] | None, Int32[Tensor, "q _"]], None]  # queries from, to; tiles; their keys


def scan(
    codes: Blocked, tables: Rounded, k: int, factor: Float[Tensor, "n"] | None, allowed: UInt8[Tensor, "_"] | None
) -> Found | None:
    if not suits(codes.device) or not codes.tables:
        return None
    q, (blocks, pairs, _) = len(tables.values), codes.data.shape
    words, values = codes.data.flatten().view(torch.int32), tables.values.contiguous()
    step, assembled = next(step for step in STEPS if pairs % step == 0), ASSEMBLED and assembles(words)

    def launch(first: int, last: int, chosen: Int32[Tensor, "q c"] | None, keys: Int32[Tensor, "q _"]) -> None:
        if chosen is None and last - first >= MANY_NIBBLES:
            own = slice(first, last)
            sizes = (None, None, None) if factor is None else (tables.scale[own], tables.bias[own], factor)
            strides, flat = (32 * pairs, 32, 1), codes.data.flatten()
            return many(flat, strides, of_tables(values[own]), sizes, allowed, keys, codes.count, pairs, TILE, assembled)
        turns = keys.shape[1] if chosen is None else chosen.shape[1]
        lookup_kernel[((last - first) * turns,)](
            words, values[first:], values[first:].flatten().view(torch.int64), tables.scale[first:], tables.bias[first:],
            factor, allowed, chosen, keys, codes.count, blocks, last - first, turns,
            PAIRS=pairs, GROUP=TILE // 64, STEP=step, ASM=LOOKUP if assembled else "",
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip

    keys, rows = nearest(q, codes.count, k, codes.device, launch)
    scores = tables.bias[:, None] + tables.scale[:, None] * keys if factor is None else unordered(keys)
    return Found(scores.masked_fill_(rows < 0, -torch.inf), rows)


def hamming(
    codes: UInt8[Tensor, "n bytes"], queries: UInt8[Tensor, "q bytes"], k: int, allowed: UInt8[Tensor, "_"] | None
) -> Found | None:
    if not suits(codes.device):
        return None
    (n, width), q, queries = codes.shape, len(queries), queries.contiguous()
    flat, wanted, unit, assembled = codes.flatten(), queries.flatten(), 1, ASSEMBLED and assembles(codes)
    if width % 4 == flat.data_ptr() % 16 == wanted.data_ptr() % 4 == 0:
        unit = 4
    words, wanted = (x.view(torch.int32) if unit == 4 else x for x in (flat, wanted))
    run = min(32, triton.next_power_of_2(max(width // unit, 1)))

    def launch(first: int, last: int, chosen: Int32[Tensor, "q c"] | None, keys: Int32[Tensor, "q _"]) -> None:
        if chosen is None and last - first >= MANY_BITS:
            strides = 32 * width, 1, width
            return many(flat, strides, of_bits(queries[first:last]), (None, None, None), allowed, keys, n, width, TILE, assembled)
        turns = keys.shape[1] if chosen is None else chosen.shape[1]
        bits_kernel[((last - first) * turns,)](
            words, wanted[first * width // unit :], allowed, chosen, keys, n, last - first, turns,
            WIDTH=width // unit, RUN=run, DOCS=min(TILE, 8192 // run), TILE=TILE, ASM=POPULATION if assembled else "", num_warps=4,
        )  # fmt: skip

    keys, rows = nearest(q, n, k, codes.device, launch)
    return Found((-keys).masked_fill_(rows < 0, FAR), rows)


def suits(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and bool(triton.knobs.runtime.interpret))


def nearest(q: int, n: int, k: int, device: torch.device, launch: Launch) -> tuple[Int32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The two passes: best keys first, rows; row -1 where fewer than k documents are allowed."""
    if not q or not n:
        return torch.full((q, k), ABSENT.value, dtype=torch.int32, device=device), torch.full((q, k), -1, device=device)
    tiles = -(-n // TILE)
    some = min(k, tiles)
    step = max(1, ROOM // (tiles + some * TILE))
    parts = list[tuple[Tensor, Tensor]]()
    for first in range(0, q, step):
        last = min(first + step, q)
        best = torch.empty(last - first, tiles, dtype=torch.int32, device=device)
        every = torch.empty(last - first, some * TILE, dtype=torch.int32, device=device)
        with torch.cuda.device_of(best):
            launch(first, last, None, best)
            chosen = top(best, some)[1]
            launch(first, last, chosen, every)
            parts.append(top(every, k, chosen))
    keys, rows = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts))
    if missing := k - keys.shape[1]:
        keys, rows = (torch.nn.functional.pad(x, (0, missing), value=v) for x, v in ((keys, ABSENT.value), (rows, -1)))
    return keys, rows


def unordered(keys: Int32[Tensor, "q k"]) -> Float[Tensor, "q k"]:
    """The fp32 numbers whose bits `ordered` has turned into keys."""
    return (keys ^ (keys >> 31 & 0x7FFFFFFF)).view(torch.float32)
