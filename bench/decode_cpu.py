"""Claim: one token times a packed matrix on the CPU is at least 2.5 times as fast as torch's fp32 product at 4 bits and 3.5 times
at 2 bits, from 4096 x 4096 on. Beside them: torch's own int4 kernel for CPUs, and the bytes per second of a large copy.

    python bench/decode_cpu.py      about two minutes on two cores; JSON goes to bench/results/

All columns take turns in one loop over several copies of each matrix, so that nothing stays in a cache; medians.
"""

import datetime
import json
import platform
import time
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

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336)]
GRIDS: dict[str, Grid] = {
    "8 bits": Integer(256),
    "4 bits": Integer(16),
    "3 bits": Integer(8),
    "2 bits": Integer(4),
    "1 bit": Integer(2),
    "nf4": Table("nf4"),
    "2 trit-planes": TritPlanes(2, iters=1),
}
GROUP, ROUNDS, CACHE = 128, 21, 128 * 2**20


def copies(size: int) -> range:
    return range(max(2, -(-CACHE // size)))


def ours(W: torch.Tensor, grid: Grid) -> tuple[list[CodedLinear], float]:
    """Modules with tensors of their own, and the stored bits per weight."""
    (term,) = Coder.fit(W, [Band(grid, Layout(1, GROUP))]).terms(W)
    size = sum(t.numel() * t.element_size() for t in term.tensors().values())
    found = []
    for _ in copies(size):
        module = CodedLinear([term.meta()])
        module.load_state_dict({f"terms.0.{n}": t.clone() for n, t in term.tensors().items()}, assign=True)
        found.append(module)
    return found, 8 * size / W.numel()


def int4(W: torch.Tensor) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """torch's kernel: asymmetric int4, groups of 128, bf16 activations."""
    codes = torch.randint(0, 16, W.shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(W.shape[1] // GROUP, W.shape[0], 2).bfloat16()
    many = [(packed.clone(), scales.clone()) for _ in copies(W.numel() // 2)]
    return [lambda x, p=p, s=s: torch.ops.aten._weight_int4pack_mm_for_cpu(x, p, GROUP, s) for p, s in many]


def timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            W = torch.randn(shape)
            dense = [W.clone() for _ in copies(4 * W.numel())]
            peers = int4(W)
            candidates = {name: ours(W, grid) for name, grid in GRIDS.items()}
            for tokens in (1, 4):
                x = torch.randn(tokens, shape[1])
                half, spare = x.bfloat16(), torch.empty_like(W)
                calls: dict[str, list[Callable[[], Any]]] = {
                    "fp32": [lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in dense],
                    "torch int4 (bf16)": [lambda f=f, half=half: f(half) for f in peers],
                    "copy": [lambda w=w, spare=spare: spare.copy_(w) for w in dense],
                } | {name: [lambda m=m, x=x: m(x) for m in modules] for name, (modules, _) in candidates.items()}
                for name, (modules, _) in candidates.items():
                    with dispatch.only("numba"):
                        y = torch.stack([module(x) for module in modules])[0]  # all, so that their forms are made
                    exact = x.double() @ modules[0].weight.double().T
                    assert (y - exact).norm() < 1e-5 * exact.norm(), name
                seconds: dict[str, list[float]] = {name: [] for name in calls}
                for i in range(ROUNDS):
                    for name, many in calls.items():
                        seconds[name].append(timed(many[i % len(many)]))
                found = {name: median(s[3:]) for name, s in seconds.items()}
                for name, s in found.items():
                    bits = candidates[name][1] if name in candidates else None
                    rows.append(
                        {
                            "shape": shape,
                            "tokens": tokens,
                            "what": name,
                            "ms": 1e3 * s,
                            "bits": bits,
                            "times fp32": found["fp32"] / s,
                        }
                    )
                    print(
                        f"{shape[0]} x {shape[1]}  {tokens} tokens  {name:18} {1e3 * s:8.3f} ms   {found['fp32'] / s:5.2f} x fp32",
                        flush=True,
                    )
                print(f"   copy: {8 * W.numel() / found['copy'] / 1e9:.1f} GB/s read and written", flush=True)
    one = [r for r in rows if r["tokens"] == 1]
    least = {name: min(r["times fp32"] for r in one if r["what"] == name) for name in ("4 bits", "2 bits")}
    holds = least["4 bits"] >= 2.5 and least["2 bits"] >= 3.5
    print(f"least over shapes, one token: {least}; the claim {'holds' if holds else 'does NOT hold'}")
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    path = Path(__file__).parent / "results" / f"decode_cpu-{datetime.date.today()}.json"
    path.write_text(json.dumps({"claim holds": holds, **machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
