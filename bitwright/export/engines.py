"""What engines do with a model: which matrices they load as one, what they can tie, which kernel takes which scheme.

The kernel table says what vLLM documents for its weight-only and quantized linear layers; it is advice, no promise of theirs.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from bitwright import index
from bitwright.export.base import Model
from bitwright.terms.base import Json


def fused_apart(model: Model, schemes: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two matrices that engines load as one and whose schemes differ."""
    kind = str(model.config.get("model_type"))
    if kind not in index.WIRINGS:
        return None
    for parts in import_module(index.WIRINGS[kind].split(":")[0]).FUSED:
        mates: dict[str, list[str]] = {}
        for name in schemes:
            for part in parts:
                if name.endswith(f".{part}"):
                    mates.setdefault(name.removesuffix(part), []).append(name)
        for block, names in mates.items():
            missing = [f"{block}{part}" for part in parts if f"{block}{part}" not in schemes]
            if missing:
                return names[0], missing[0]
            if other := next((n for n in names if schemes[n] != schemes[names[0]]), None):
                return names[0], other
    return None


def tied(model: Model, form: str) -> str | None:
    """Why a compressed embedding that is tied to the head has no place, None where there is none."""
    if model.tied_head is None:
        return None
    return f"{form} has no output head that reads a compressed embedding, as {model.tied_head} does; compress without --head."


def kernel(args: Mapping[str, Json], shape: list[int]) -> str:
    """Which kernel of vLLM takes a matrix of this scheme, in words."""
    bits, group, (out, inp) = args["num_bits"], args.get("group_size"), shape
    if args["type"] == "int":
        marlin = args["strategy"] in ("channel", "group") and group in (None, 32, 64, 128) and bits in (4, 8)
        if marlin and args["symmetric"] and out % 64 == 0 and inp % 128 == 0:
            return f"vLLM takes {bits}-bit integers in groups of {group or 'a row'} with Marlin"
        if marlin and not args["symmetric"] and bits == 4 and out % 64 == 0 and inp % 128 == 0:
            return "vLLM takes asymmetric 4-bit integers with Marlin (as AWQ-like zero points)"
        return f"vLLM has no kernel for {bits}-bit integers of {args['strategy']} strategy on {out} x {inp}; transformers has"
    names = {"tensor_group": "NVFP4 (Blackwell; Marlin on older GPUs)", "channel": "FP8", "tensor": "FP8", "block": "FP8 blocks"}
    if args["strategy"] == "group" and bits in (4, 8):
        return f"vLLM takes MXFP{bits} on Blackwell, and weight-only elsewhere"
    return f"vLLM takes {names.get(str(args['strategy']), f'{bits}-bit floats')}"
