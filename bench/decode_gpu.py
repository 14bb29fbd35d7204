"""Claim: on one H200, products with packed codes against torch's bf16 `mm`, groups of 128: at one token at least 2.6, 3.2 and 4
times as fast at 4, 3 and 2 bits on 28672 x 8192; at 16 tokens 1.5 times at 4 bits; at 1024 tokens at least 0.85.

    python bench/decode_gpu.py --out DIRECTORY [--quick]

CUDA graphs over copies of every matrix that together are larger than the L2 cache; medians of replays; every result is checked
against the decoded matrix. Also measured: the bytes per second that a bf16 product of one token reads, which is the limit.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.kernels import dispatch
from bitwright.layout import Layout

SHAPES = [(28672, 8192), (14336, 4096)]
GRIDS: dict[str, Grid] = {
    "4 bits": Integer(16),
    "3 bits": Integer(8),
    "2 bits": Integer(4),
    "1 bit": Integer(2),
    "8 bits": Integer(256),
    "nf4": Table("nf4"),
    "2 trit-planes": TritPlanes(2, iters=1),
}
CACHE = 160 * 2**20


def replay(calls: list[Callable[[], Any]], repeats: int) -> float:
    """Seconds of one call: a graph of all calls, replayed; the median."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return median(times)


def modules(W: torch.Tensor, grid: Grid) -> list[CodedLinear]:
    (term,) = Coder.fit(W, [Band(grid, Layout(1, 128))]).terms(W)
    size = sum(t.numel() * t.element_size() for t in term.tensors().values())
    found = []
    for _ in range(max(2, -(-CACHE // size))):
        module = CodedLinear([term.meta()])
        module.load_state_dict({f"terms.0.{n}": t.clone() for n, t in term.tensors().items()}, assign=True)
        found.append(module)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="one shape, 4 and 2 bits")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for shape in SHAPES[:1] if chosen.quick else SHAPES:
            W = torch.randn(shape, device="cuda") / 64
            dense = [W.bfloat16() for _ in range(3)]
            inputs = {n: torch.randn(n, shape[1], device="cuda").bfloat16() for n in (1, 4, 16, 64, 1024)}
            floor = {n: replay([lambda w=w, x=x: torch.mm(x, w.T) for w in dense], 20) for n, x in inputs.items()}
            print(f"{shape}  bf16 mm " + "  ".join(f"{n}: {1e6 * s:.1f} us" for n, s in floor.items()), flush=True)
            print(f"   reads {2 * W.numel() / floor[1] / 1e12:.2f} TB/s", flush=True)
            for name, grid in GRIDS.items():
                if chosen.quick and name not in ("4 bits", "2 bits"):
                    continue
                made = modules(W, grid)
                exact = made[0].weight
                line = []
                for n, x in inputs.items():
                    try:
                        with dispatch.only("triton"):
                            y = made[0](x).float()
                            wanted = x.float() @ exact.T
                            error = float((y - wanted).norm() / wanted.norm())
                            seconds = replay([lambda m=m, x=x: m(x) for m in made], 20)
                    except Exception as failure:  # a kernel that does not compile is a row of the table, not the end of the bench
                        rows.append({"shape": shape, "what": name, "tokens": n, "failed": repr(failure)[:500]})
                        line.append(f"{n}: {type(failure).__name__}")
                        continue
                    rows.append(
                        {
                            "shape": shape,
                            "what": name,
                            "tokens": n,
                            "us": 1e6 * seconds,
                            "times bf16": floor[n] / seconds,
                            "error": error,
                        }
                    )
                    line.append(f"{n}: {1e6 * seconds:.1f} us {floor[n] / seconds:.2f}x err {error:.0e}")
                print(f"   {name:14} " + "   ".join(line), flush=True)
                del made
    card = torch.cuda.get_device_name()
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "decode_gpu.json").write_text(json.dumps({"card": card, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
