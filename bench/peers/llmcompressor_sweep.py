"""llm-compressor's GPTQ solver on a GPU, in its own environment: one block of large linears, seconds and objectives out.

python bench/peers/llmcompressor_sweep.py --block llama|falcon --out FILE.json
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

sys.path.insert(0, str(Path(__file__).parents[1]))
from blocks import SHAPES, moments, seconds, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", choices=list(SHAPES), required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    how = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=128, actorder="static")
    rows = []
    with torch.no_grad():
        for part, (out, inp) in SHAPES[args.block].items():
            W, H = weights(out, inp), moments(inp)
            groups = W.view(out, -1, 128)
            scale, zero = calculate_qparams(groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0), how)

            def solve(rows: int = out, W=W, H=H, scale=scale, zero=zero) -> torch.Tensor:
                copies = W[:rows].clone()[None], H.clone()[None], scale[:rows][None], zero[:rows][None]
                return quantize_weight(*copies, None, how)[0][0]

            solve(64)  # compile
            found, took = seconds(solve)
            E = W - found.float()
            rows.append(
                {"part": part, "shape": (out, inp), "seconds": took, "objective": float(((E @ H) * E).sum(dtype=torch.float64))}
            )
            print("llm-compressor", rows[-1], flush=True)
            del W, H, E, found, solve
            torch.cuda.empty_cache()
    Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
