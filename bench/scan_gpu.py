"""Claim: on one H100, exact search of 100 million codes of 256 bits for one query reads them at no less than 0.8 of the bytes per
second that a plain read of the same memory reaches in the same process; results are those of a plain computation in torch.

    python bench/scan_gpu.py --out FILE [--plain] [--variants] [--documents 100000000]

Random codes, made on the device. Tables of float queries with sign codes (1 bit a dimension) and of 2 bits a dimension, and
Hamming distances; one query and 256 (no bar). Medians of single calls: `ms` is the scan of rounded tables, `whole_ms` also rounds
and checks them. `clock_us`: tables rounded, and a whole search, on the clock from call to result, where the kernel rounds and where
the reference does. `--plain`: Triton's own operations in place of NVIDIA's instructions. `--variants`: other sizes of tiles and
steps.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitwright.kernels import dispatch, scan_reference, scanning
from bitwright.kernels.scanning import Blocked
from bitwright.kernels.triton import scan as ours
from bitwright.kernels.triton import scan_many

BYTES, K, PIECE = 32, 10, 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--variants", action="store_true")
    args = parser.parse_args()
    ours.ASSEMBLED = not args.plain
    n = args.documents // 64 * 64
    torch.manual_seed(0)
    data = torch.empty(n * BYTES, dtype=torch.uint8, device="cuda")
    for piece in data.split(1 << 28):
        piece.copy_(torch.randint(0, 256, piece.shape, dtype=torch.uint8, device="cuda"))
    read = {"triton": milliseconds(lambda: plain_read(data)), "torch": milliseconds(lambda: data.view(torch.int32).sum())}
    speed = data.nbytes / min(read.values()) / 1e6
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    found |= {
        "plain": args.plain,
        "documents": n,
        "read_gb_per_s": speed,
        "read_ms": read,
        "cases": {},
        "selection_ms": selection(n),
        "clock_us": clocks(Blocked(data.view(-1, BYTES, 32), n)),
    }
    print(json.dumps({name: value for name, value in found.items() if name != "cases"}, indent=1), flush=True)
    for name, case in cases(data, n).items():
        try:
            row = measured(data.nbytes, speed, *case)
        except Exception as failure:  # one that does not compile must not hide the others' numbers
            row = {"failed": repr(failure)[:2000]}
        found["cases"][name] = row
        print(name, json.dumps(row), flush=True)
    if args.variants:
        found["variants"] = variants(data, n, speed)
    where = Path(__file__).parent / "results" / f"scan_gpu-{datetime.date.today()}.json"
    for path in filter(None, (where, args.out)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


Case = tuple[Callable[[], Any], Callable[[], Any], Callable[[int], Tensor], tuple[int, ...]]


def cases(data: Tensor, n: int) -> dict[str, Case]:
    """Name -> (the scan, all of the search, the true order keys of one query for all documents, which queries are checked)."""
    made: dict[str, Case] = {}
    for q, checked in ((1, (0,)), (256, (0, 101, 255))):
        for what, dimensions, bits in (("sign", 256, 1), ("2 bit", 256, 2)):
            codes = Blocked(data.view(-1, dimensions * bits // 8, 32), n // bits)
            made[f"{what} codes, {q} float queries"] = nibble_case(codes, tables_of(q, dimensions, bits), checked)
        rows, queries = data.view(n, BYTES), torch.randint(0, 256, (q, BYTES), dtype=torch.uint8, device="cuda")
        made[f"hamming, {q} queries"] = hamming_case(rows, queries, checked)
    half = Blocked(data.view(-1, BYTES, 32), n)
    factor = torch.rand(n, device="cuda").half() + 0.5
    allowed = torch.randint(0, 256, (n // 8,), dtype=torch.uint8, device="cuda")
    made["sign codes, 1 float query, factors"] = nibble_case(half, tables_of(1, 256, 1), (0,), factor)
    made["sign codes, 1 float query, half of them allowed"] = nibble_case(half, tables_of(1, 256, 1), (0,), None, allowed)
    return made


def tables_of(q: int, dimensions: int, bits: int) -> Tensor:
    """What every nibble adds to a float query's product: dimensions of +-1, or of +-0.45 and +-1.51."""
    points = torch.tensor([-1.0, 1.0] if bits == 1 else [-1.51, -0.45, 0.45, 1.51], device="cuda")
    nibbles = torch.arange(16, device="cuda")
    values = torch.stack([points[nibbles >> bits * i & 2**bits - 1] for i in range(4 // bits)])
    return (torch.randn(q, dimensions, device="cuda").view(q, -1, 4 // bits) @ values).contiguous()


def nibble_case(codes: Blocked, tables: Tensor, checked: tuple[int, ...], *more: Tensor | None) -> Case:
    factor, allowed = (*more, None, None)[:2]
    rounded = scanning.rounded(tables)

    def keys(query: int) -> Tensor:
        values, found = rounded.values[query].int(), []
        byte = torch.arange(256, device="cuda")
        both = values[0::2][:, byte & 15] + values[1::2][:, byte >> 4]
        for part in codes.data.split(PIECE // 32):
            sums = torch.zeros(len(part), 32, dtype=torch.int32, device="cuda")
            for pair, table in enumerate(both):
                sums += table[part[:, pair].int()]
            found.append(sums.flatten()[: codes.count])
        sums = torch.cat(found)
        if factor is not None:
            scores = factor.float() * (rounded.bias[query] + rounded.scale[query] * sums.float())
            sums = scores.view(torch.int32) ^ (scores.view(torch.int32) >> 31 & 0x7FFFFFFF)
        if allowed is not None:
            bits = allowed[:, None] >> torch.arange(8, device="cuda") & 1
            sums = sums.masked_fill(bits.flatten() == 0, -(2**31))
        return sums

    scan = lambda: dispatch.call("scan", codes, rounded, K, factor, allowed)  # noqa: E731
    return scan, lambda: scanning.scan(codes, tables, K, factor, allowed), keys, checked


def hamming_case(rows: Tensor, queries: Tensor, checked: tuple[int, ...]) -> Case:
    bits = (torch.arange(256, device="cuda")[:, None] >> torch.arange(8, device="cuda") & 1).sum(1, dtype=torch.int32)

    def keys(query: int) -> Tensor:
        return torch.cat([-bits[(part ^ queries[query]).int()].sum(1, dtype=torch.int32) for part in rows.split(PIECE)])

    search = lambda: scanning.hamming(rows, queries, K)  # noqa: E731
    return search, search, keys, checked


def measured(size: int, speed: float, scan: Callable[[], Any], whole: Callable[[], Any], keys: Any, checked: Any) -> dict[str, Any]:
    found = scan()
    right = all(torch.equal(found[1][query], best_rows(keys(query))) for query in checked)
    ms = milliseconds(scan)
    row = {"ms": ms, "whole_ms": milliseconds(whole), "gb_per_s": size / ms / 1e6, "of_read": size / ms / 1e6 / speed}
    return {**row, "right": right, "kernels_us": kernels(scan)}


def best_rows(keys: Tensor) -> Tensor:
    """The K largest keys' rows, lower rows first among equals."""
    keys = keys.clamp_min(1 - 2**31)  # so that a place can be taken off
    wide = torch.cat(
        [(part.long() << 32) - i * PIECE - torch.arange(len(part), device="cuda") for i, part in enumerate(keys.split(PIECE))]
    )
    return wide.topk(K).indices


def kernels(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of every kernel of one call, the longest first; how many kernels and copies there were."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    rows = sorted(((e.device_time_total, e.key, e.count) for e in seen.key_averages()), reverse=True)
    longest = {f"{key[:40]} ... {key[-30:]}" if len(key) > 80 else key: us for us, key, _ in rows[:12]}
    return longest | {"launches": sum(count for us, _, count in rows if us > 0)}


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of single calls, the device kept busy before each, so that launching is not what is measured."""
    times = []
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    for _ in range(30 if begin.elapsed_time(end) < 20 else 5):
        torch.cuda._sleep(1_000_000)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times)


def clocks(codes: Blocked) -> dict[str, dict[str, Any]]:
    """Microseconds that one who asks once waits, launches and all, for the kernel's rounding and for the reference's."""
    found = dict[str, dict[str, Any]]()
    for how in ("triton", "reference"):
        dispatch.ENTRIES["rounded"] = {how: dispatch.ROUNDED[how]}
        for q, t in ((1, 64), (1, 128), (256, 64), (256, 128)):
            tables = torch.randn(q, t, 16, device="cuda")
            same = all(torch.equal(a, b) for a, b in zip(scanning.rounded(tables), scan_reference.rounded(tables)))
            us = microseconds(lambda tables=tables: scanning.rounded(tables))
            found[f"{how}: {t} tables of {q} rounded"] = {"us": us, "right": same}
        for name, tables in (("sign", tables_of(1, 256, 1)), ("other", torch.randn(1, 64, 16, device="cuda"))):
            search = lambda tables=tables: scanning.scan(codes, tables, K)  # noqa: E731
            found[f"{how}: scan(), 1 query, {name} codes"] = {"us": microseconds(search), **kernels(search)}
    dispatch.ENTRIES["rounded"] = dispatch.ROUNDED
    return found


def microseconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(50):
        torch.cuda.synchronize()
        start = perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return median(times) * 1e6


def selection(n: int) -> dict[str, float]:
    """Ways to find the best of keys, at the sizes of both passes."""
    found, tiles = {}, -(-n // ours.TILE)
    for q, width in ((1, tiles), (1, K * ours.TILE), (256, tiles), (256, K * ours.TILE)):
        keys = torch.randint(-(2**20), 2**20, (q, width), dtype=torch.int32, device="cuda")
        places = torch.arange(width, device="cuda")
        found[f"rounds of maxima {q} x {width}"] = milliseconds(lambda keys=keys: ours.top(keys, K))
        found[f"topk of 64 bits {q} x {width}"] = milliseconds(
            lambda keys=keys, places=places: ((keys.long() << 32) - places).topk(K)
        )
        found[f"topk of 32 bits {q} x {width}"] = milliseconds(lambda keys=keys: keys.topk(K))
    return found


def variants(data: Tensor, n: int, speed: float) -> list[dict[str, Any]]:
    """Sizes of tiles and steps for one query, of products for many; from how many queries on a product is faster."""
    codes, rows = Blocked(data.view(-1, BYTES, 32), n), list[dict[str, Any]]()

    def row(call: Callable[[], Any], **what: Any) -> None:
        try:
            rows.append({**what, "ms": milliseconds(call)})
            rows[-1]["of_read"] = data.nbytes / rows[-1]["ms"] / 1e6 / speed
        except Exception as failure:
            rows.append({**what, "failed": repr(failure)[:300]})
        print(rows[-1], flush=True)

    def searches(q: int) -> dict[str, Callable[[], Any]]:
        signs, others = (scanning.rounded(t) for t in (tables_of(q, 256, 1), torch.randn(q, 64, 16, device="cuda")))
        queries = torch.randint(0, 256, (q, BYTES), dtype=torch.uint8, device="cuda")
        made = {
            name: lambda t=t: dispatch.call("scan", codes, t, K, None, None) for name, t in (("sign", signs), ("other", others))
        }
        return {**made, "hamming": lambda: dispatch.call("hamming", data.view(n, BYTES), queries, K, None)}

    sign = searches(1)["sign"]
    for tile in (2048, 4096, 8192):
        for steps in ((8, 1), (4, 1), (2, 1), (1,)):
            ours.TILE, ours.STEPS = tile, steps
            row(sign, tile=tile, step=steps[0])
    ours.TILE, ours.STEPS = 4096, (4, 2, 1)
    before = ours.LOOKUP  # without looking anything up, what reading in this order takes
    ours.LOOKUP = " ".join(f"xor.b32 ${i}, ${8 + i % 2}, ${18 + i};" for i in range(8))
    row(sign, tile=4096, step=4, looks_up=False)
    ours.LOOKUP = before
    borders = ours.MANY_BITS, ours.MANY_NIBBLES
    for q in (8, 32, 128):
        for name, search in searches(q).items():
            for least in (1, q + 1):
                ours.MANY_BITS = ours.MANY_NIBBLES = least
                row(search, queries=q, codes=name, at_once=least == 1)
    ours.MANY_BITS, ours.MANY_NIBBLES = borders
    for documents in (64, 256):
        scan_many.DOCS = documents
        for name, search in searches(256).items():
            row(search, queries=256, codes=name, documents=documents)
    scan_many.DOCS = 128
    turn, scan_many.TURN = scan_many.TURN, ""
    for name in ("sign", "other"):
        row(searches(256)[name], queries=256, codes=name, turned=False)
    scan_many.TURN = turn
    return rows


def plain_read(data: Tensor) -> Tensor:
    words = data.view(torch.int32)
    sums = torch.empty(-(-len(words) // 32768), dtype=torch.int32, device="cuda")
    read_kernel[(len(sums),)](words, sums, len(words), SIZE=4096, TURNS=8, num_warps=8)
    return sums


@triton.jit
def read_kernel(words, sums, n, SIZE: tl.constexpr, TURNS: tl.constexpr):
    total = tl.zeros((SIZE,), tl.int32)
    start = tl.program_id(0).to(tl.int64) * (SIZE * TURNS)
    for i in tl.static_range(TURNS):
        at = start + i * SIZE + tl.arange(0, SIZE)
        total |= tl.load(words + at, mask=at < n, other=0)
    tl.store(sums + tl.program_id(0), tl.max(total, 0))


if __name__ == "__main__":
    main()
