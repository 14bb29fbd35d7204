"""llm-compressor's GPTQ solver alone, in its own environment: matrices in, decoded matrices and seconds out."""

import argparse
import json
import time

import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", required=True, help="safetensors: W, H, scale [out, groups], zero [out, groups] in 0 .. 15")
    parser.add_argument("--out", required=True, help="safetensors: W as decoded; beside it .json with the seconds")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    given = load_file(args.problem)
    how = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=args.group, actorder="static")
    seconds = []
    with torch.no_grad():
        for _ in range(args.runs + 1):
            copies = [given[name].clone()[None] for name in ("W", "H", "scale")]
            zero = (given["zero"] - 8).to(torch.int8)[None]
            begun = time.perf_counter()
            found = quantize_weight(copies[0], copies[1], copies[2], zero, None, how)[0]
            seconds.append(time.perf_counter() - begun)
    save_file({"W": found[0].float().contiguous()}, args.out)
    with open(f"{args.out}.json", "w") as file:
        json.dump({"seconds": seconds[1:], "threads": torch.get_num_threads()}, file)


if __name__ == "__main__":
    main()
