"""Claim: GPTQ's solver alone (order, factor, column loop, error) takes on the CPU at most a tenth of llm-compressor 0.14.0.1's
time on the same matrices, moments, scales and zero points, at the same objective.

    make a peer environment as bench/peers/README.md says, then: python bench/solver_cpu.py

Shapes of zoo:lm and of a 40 M Llama (hidden 512); 4 bits asymmetric, groups of 32, activation order, damping 1 %; medians.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import decode

HERE = Path(__file__).parent
SHAPES, GROUP, RUNS = [(256, 256), (768, 256), (256, 768), (512, 512), (1536, 512), (512, 1536)], 32, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=HERE.parent / ".venv-peers" / "llmcompressor" / "bin" / "python")
    args = parser.parse_args()
    if not args.peer.exists():
        sys.exit(f"There is no peer environment at {args.peer}; make it as bench/peers/README.md says.")
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for shape in SHAPES:
            torch.manual_seed(0)
            x = torch.randn(8192, shape[1]) / torch.arange(1, shape[1] + 1) @ torch.randn(shape[1], shape[1])
            W, H = torch.randn(shape), x.T @ x / len(x)
            coder = Coder.fit(W, [Band(Integer(16), Layout(1, GROUP))])
            scale, zero = (coder.params[0][n].float().view(shape[0], -1).contiguous() for n in ("scale", "zero"))
            problem, out = Path(folder) / "problem.safetensors", Path(folder) / "out.safetensors"
            save_file({"W": W, "H": H, "scale": scale, "zero": zero}, problem)
            ours, peers = [], []
            for _ in range(3):  # in turn
                subprocess.run(
                    [str(args.peer), str(HERE / "peers" / "llmcompressor_solver.py"), "--problem", str(problem), "--out", str(out),
                     "--group", str(GROUP), "--runs", str(RUNS)], check=True, capture_output=True,
                )  # fmt: skip
                peers += json.loads(Path(f"{out}.json").read_text())["seconds"]
                GPTQ()(W, coder, Known({"gram": H}))
                for _ in range(RUNS):
                    begun = time.perf_counter()
                    terms = GPTQ()(W, coder, Known({"gram": H}))
                    ours.append(time.perf_counter() - begun)
            losses = objective(W - decode(terms), H), objective(W - load_file(out)["W"], H)
            row = {
                "shape": shape,
                "ours": median(ours),
                "peer": median(peers),
                "ratio": median(peers) / median(ours),
                "objectives": losses,
            }
            rows.append(row)
            print(f"{shape[0]:5} x {shape[1]:<5} ours {1e3 * row['ours']:7.1f} ms  llm-compressor {1e3 * row['peer']:8.1f} ms  "
                  f"{row['ratio']:5.1f} times as fast  objective {losses[0]:.5g} against {losses[1]:.5g}", flush=True)  # fmt: skip
    holds = all(row["ratio"] >= 10 for row in rows)
    print(f"the claim {'holds' if holds else 'does NOT hold'}")
    path = HERE / "results" / f"solver_cpu-{datetime.date.today()}.json"
    path.write_text(json.dumps({"claim holds": holds, "threads": torch.get_num_threads(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
