"""The peer's side of a race: llm-compressor's GPTQ on one Llama-like directory, by its documented road, timed.

Idea: `oneshot(model, dataset, recipe=GPTQModifier(...))` with every default of the library left alone, so that what is
measured is what its user gets. Only the scheme is chosen here: b-bit integers, one scale (and zero point) per group of
g inputs, on every Linear but the head. Its objective per matrix, with x the inputs its quantized predecessors give:

    min over codes of  tr (W - Ŵ) H (W - Ŵ)ᵀ,    H = 2/N Σ x xᵀ + 0.01 · mean(diag H) · I

Source: GPTQ (Frantar et al., 2022) as in llm-compressor 0.14.0.1; environment in `llmcompressor.txt` beside this file.
Differs from the library's examples in one thing: the calibration rows come in a DataLoader, which `oneshot` takes as
it is. Given a Dataset it either shuffles or sorts by length with an unstable sort, and both change the given order.
Cost: by default all rows twice through every block (once for H, once to propagate); the script adds only its own bookkeeping,
and the dense copy is written after the clock has stopped. Linux only (the start of the process is read from /proc).

    python llmcompressor_gptq.py --model DIR --tokens FILE --out DIR [--dense DIR] [--json FILE]
"""

import argparse
import json
import os
import resource
import shutil
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a directory; nothing may be fetched while the clock runs

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def age() -> float:
    """Seconds since the operating system started this process (Linux; resolution 10 ms)."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def recipe(bits: int, group: int, symmetric: bool) -> GPTQModifier:
    """GPTQ on every Linear but the head; damping, block size, column order and observer are the library's defaults."""
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group)
    return GPTQModifier(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"])


def settings(modifier: GPTQModifier, model: PreTrainedModel) -> dict:
    """What was in force after the library resolved its defaults, read off the modifier and the quantized modules."""
    schemes = [m.quantization_scheme.weights for m in model.modules() if hasattr(m, "quantization_scheme")]
    (weights,) = {scheme.model_dump_json() for scheme in schemes}  # the recipe has one scheme; two would be a fault
    return {
        "matrices": len(schemes),
        "damping": modifier.dampening_frac,
        "block_size": modifier.block_size,
        **json.loads(weights),  # bits, symmetry, group, actorder, observer, ...
    }


def write_dense(model: Path, compressed: Path, out: Path) -> None:
    """Write the decoded model as a plain Hugging Face directory: same tensors as `model`, float32, nothing packed.

    Decoding is scale · (code - zero point) with the stored scales widened to float32 first, so no bit of the
    product is lost; what a bfloat16 engine would round away afterwards is not held against the codes.
    """
    decoding = CompressedTensorsConfig(dequantize=True)
    decoded = AutoModelForCausalLM.from_pretrained(compressed, dtype=torch.float32, quantization_config=decoding)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights = decoded.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    plain.save_pretrained(out)


def copy_tokenizer(model: Path, out: Path) -> None:
    """Copy the tokenizer's files unread: calibration starts from token ids."""
    for file in (*model.glob("tokenizer*"), *model.glob("special_tokens_map.json"), *model.glob("chat_template*")):
        shutil.copy(file, out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of a causal language model")
    parser.add_argument("--tokens", type=Path, required=True, help='safetensors file, int64 "input_ids" [rows, length]')
    parser.add_argument("--out", type=Path, required=True, help="directory for the compressed-tensors model")
    parser.add_argument("--dense", type=Path, help="also write the decoded weights here, as a plain float32 model")
    parser.add_argument("--json", type=Path, help="write timings, versions and settings here")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=32, help="inputs that share a scale")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--asymmetric", dest="symmetric", action="store_false", help="with a zero point (default)")
    kind.add_argument("--symmetric", dest="symmetric", action="store_true")
    parser.set_defaults(symmetric=False)
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto", help="auto: as stored on disk")
    parser.add_argument("--batch-size", type=int, default=1, help="rows per forward pass; 1 is the library's default")
    # "basic" skips the second pass (errors are not propagated): faster, holds every H at once, the library advises against it.
    parser.add_argument("--pipeline", choices=("independent", "basic"), default="independent", help="independent: the default")
    return parser.parse_args()


def main() -> None:
    imported = age()
    args = arguments()

    tokens = load_file(args.tokens)["input_ids"]
    rows = DataLoader([{"input_ids": row} for row in tokens], batch_size=args.batch_size)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
    loaded = age()

    forwarded = []
    first = next(m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head")
    counter = first.register_forward_hook(lambda _m, inputs, _y: forwarded.append(inputs[0].shape[:-1].numel()))
    gptq = recipe(args.bits, args.group, args.symmetric)
    # Ready-made rows need no tokenizer, but `oneshot` loads one unless it is handed an object: any object will do.
    oneshot(model=model, dataset=rows, recipe=gptq, pipeline=args.pipeline, processor=object())
    quantized = age()
    counter.remove()
    in_force = settings(gptq, model)  # before saving, which packs the modules away

    model.save_pretrained(args.out, save_compressed=True)
    copy_tokenizer(args.model, args.out)
    saved = age()

    facts = {
        "seconds": {
            "imports": imported,
            "load": loaded - imported,
            "oneshot": quantized - loaded,
            "save": saved - quantized,
            "total": saved,
        },
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "calibration": {
            "rows": tokens.shape[0],
            "length": tokens.shape[1],
            "batch_size": args.batch_size,
            "pipeline": args.pipeline,  # independent: every modifier its own; for GPTQ that is the sequential one
            "tokens_through_first_matrix": sum(forwarded),
        },
        "dtype": str(model.dtype).removeprefix("torch."),
        "settings": in_force,
        "recipe": (args.out / "recipe.yaml").read_text(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if args.json:
        args.json.write_text(json.dumps(facts, indent=2) + "\n")
    if args.dense:
        write_dense(args.model, args.out, args.dense)
        copy_tokenizer(args.model, args.dense)


if __name__ == "__main__":
    main()
