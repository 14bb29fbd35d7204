"""Claim: GPTQ and three sweeps of coordinate descent on one block of Llama-3-8B shapes take seconds on one GPU, with the
objective of the reference loops. Random weights, inputs with a power-law spectrum, 4 bits, groups of 128.

    python bench/sweep_gpu.py --out DIRECTORY
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.recipes.best import best
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import decode

BLOCK = {"q": (4096, 4096), "k, v": (2048, 4096), "o": (4096, 4096), "gate, up": (28672, 4096), "down": (4096, 14336)}


def moments(inp: int) -> torch.Tensor:
    """Of 16384 tokens whose features are mixed and fall off as 1 / i."""
    x = torch.randn(16384, inp, device="cuda") / torch.arange(1, inp + 1, device="cuda")
    mixed = x @ (torch.randn(inp, inp, device="cuda") / inp**0.5)
    return mixed.T @ mixed / len(mixed)


def timed(call: Any) -> tuple[Any, float]:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    found = call()
    torch.cuda.synchronize()
    return found, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for dtype in (torch.float64, torch.float32):  # the reference's numbers first, on a small matrix
            W, H = torch.randn(250, 512, device="cuda", dtype=dtype), moments(512).to(dtype)
            coder, found = Coder.fit(W, [Band(Integer(16), Layout(1, 128))]), {}
            for name in ("reference", "triton"):
                with dispatch.only(name):
                    found[name] = objective(W - decode(best().rounding(W, coder, Known({"gram": H}))), H)
            rows.append({"check": str(dtype), **found})
            print(rows[-1], flush=True)
        for part, shape in BLOCK.items():
            W, H = torch.randn(shape, device="cuda"), moments(shape[1])
            coder, known = Coder.fit(W, [Band(Integer(16), Layout(1, 128))]), Known({"gram": H})
            for name, rounding in (("gptq", GPTQ()), ("best", best().rounding)):
                rounding(W[:64], Coder.fit(W[:64], coder.bands), Known({"gram": H}))  # compile
                terms, seconds = timed(lambda r=rounding, W=W, coder=coder, H=H: r(W, coder, Known({"gram": H})))
                _, warm = timed(lambda r=rounding, W=W, coder=coder, known=known: r(W, coder, known))
                rows.append(
                    {
                        "part": part,
                        "shape": shape,
                        "rounding": name,
                        "seconds": seconds,
                        "second time": warm,
                        "objective": objective(W - decode(terms), H),
                    }
                )
                print(rows[-1], flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "sweep_gpu.json").write_text(
        json.dumps({"card": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
