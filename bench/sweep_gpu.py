"""Claim: on one GPU, GPTQ and three sweeps of coordinate descent over one block of Llama-3-8B shapes take no longer than
llm-compressor's GPTQ alone, at a lower objective; QuantEase, 30 sweeps, over all linears of Falcon-180B: 45 minutes at most.

    python bench/sweep_gpu.py --out DIRECTORY [--block llama|falcon]

Random weights, inputs with a power-law spectrum (`blocks.py`), 4 bits, groups of 128. The peer runs the same matrices, on the same
machine: `peers/llmcompressor_sweep.py`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from blocks import SHAPES, moments, seconds, weights

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.recipes.best import best
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase
from bitwright.terms.base import decode

BANDS = [Band(Integer(16), Layout(1, 128))]
ROUNDINGS = {"llama": {"gptq": GPTQ(), "gptq and 3 sweeps": best().rounding}, "falcon": {"quantease": QuantEase(iters=30)}}


def equal_to_the_reference(dtype: torch.dtype) -> dict[str, Any]:
    W, H = torch.randn(250, 512, device="cuda", dtype=dtype), moments(512).to(dtype)
    coder, found = Coder.fit(W, BANDS), {}
    for name in ("reference", "triton"):
        with dispatch.only(name):
            found[name] = objective(W - decode(best().rounding(W, coder, Known({"gram": H}))), H)
    return {"check": str(dtype), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--block", choices=list(SHAPES), default="llama")
    chosen = parser.parse_args()
    with torch.no_grad():
        rows = [equal_to_the_reference(dtype) for dtype in (torch.float64, torch.float32)]
        for part, (out, inp) in SHAPES[chosen.block].items():
            W, H = weights(out, inp), moments(inp)
            coder = Coder.fit(W, BANDS)
            for name, rounding in ROUNDINGS[chosen.block].items():
                rounding(W[:64], Coder.fit(W[:64], BANDS), Known({"gram": H}))  # compile
                terms, took = seconds(lambda r=rounding, W=W, coder=coder, H=H: r(W, coder, Known({"gram": H})))
                loss = objective(W - decode(terms), H)
                rows.append({"part": part, "shape": (out, inp), "rounding": name, "seconds": took, "objective": loss})
                print(rows[-1], flush=True)
            del W, H, coder, terms
            torch.cuda.empty_cache()
    for name in ROUNDINGS[chosen.block]:
        print(name, sum(row["seconds"] for row in rows if row.get("rounding") == name), "s a block", flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    about = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    (chosen.out / f"sweep_gpu-{chosen.block}.json").write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
