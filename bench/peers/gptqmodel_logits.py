"""The logits of GPTQ directories as transformers computes them with GPTQModel's plain torch kernel, in an environment of their own.

BUILD_CUDA_EXT=0 pip install --no-build-isolation -r gptqmodel.txt      (torch first: the package asks for it while it is built)
python gptqmodel_logits.py --tokens FILE DIR [DIR ...]                  writes logits.safetensors into every directory
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=Path, required=True, help='safetensors, int64 "input_ids" [rows, length]')
    parser.add_argument("directories", type=Path, nargs="+")
    args = parser.parse_args()
    ids = load_file(args.tokens)["input_ids"]
    for root in args.directories:
        model = AutoModelForCausalLM.from_pretrained(root, torch_dtype=torch.float32, device_map="cpu")
        assert any(isinstance(module, TorchQuantLinear) for module in model.modules()), "nothing was loaded as GPTQ"
        with torch.no_grad():
            save_file({"logits": model(ids).logits.contiguous()}, root / "logits.safetensors")


if __name__ == "__main__":
    main()
