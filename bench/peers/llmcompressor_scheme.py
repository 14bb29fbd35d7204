"""The peer's side of a comparison of quality: llm-compressor's presets, by nearest rounding or its GPTQ, as a directory.

Every default of the library is left alone; calibration rows come in a DataLoader (llmcompressor_gptq.py says why).

    python llmcompressor_scheme.py --model DIR --tokens FILE --out DIR --scheme NVFP4A16 [--rounding nearest|gptq]
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

MODIFIERS = {"nearest": QuantizationModifier, "gptq": GPTQModifier}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "tokens", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--rounding", choices=MODIFIERS, default="nearest")
    args = parser.parse_args()

    rows = DataLoader([{"input_ids": row} for row in load_file(args.tokens)["input_ids"]], batch_size=1)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    modifier = MODIFIERS[args.rounding](targets="Linear", scheme=args.scheme, ignore=["lm_head"])
    oneshot(model=model, dataset=rows, recipe=modifier, processor=object())
    model.save_pretrained(args.out, save_compressed=True)


if __name__ == "__main__":
    main()
