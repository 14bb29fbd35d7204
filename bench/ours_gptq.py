"""Our side of road_cpu.py, as a whole process: tokens in, compressed directory out, nothing measured."""

import argparse

import torch
from safetensors.torch import load_file

import bitwright
from bitwright.calibrate.data import Windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--recipe", default="gptq")
    parser.add_argument("--model", default="zoo:lm")
    args = parser.parse_args()
    ids = load_file(args.tokens)["input_ids"]
    none = torch.zeros(len(ids), dtype=torch.long)
    data = Windows(ids, ("given",), none, ("",) * len(ids), none, args.tokens, None, 0)
    make = getattr(bitwright.recipes, args.recipe)
    bitwright.compress(args.model, make(bits=4, group=32), data, out=args.out)


if __name__ == "__main__":
    main()
