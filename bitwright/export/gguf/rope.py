"""Rotary positions: what config.json says of their scaling, as GGUF has it, and back.

    default  nothing           linear   two metadata keys           llama3   a tensor `rope_freqs` that divides the frequencies

The tensor of llama3 is a function of four numbers of the configuration:

    wavelength w = 2 pi / f,  r = (L / w - low) / (high - low) clamped to 0 .. 1,   divisor = 1 / ((1 - r) / factor + r)

The numbers do not follow from the tensor, so they are stored beside it under a key of our own. Files of other tools lack it; then
the values that all published models have (low 1, high 4, L 8192) are tried, and the tensor must agree.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.terms.base import Json

TENSOR, KEY = "rope_freqs.weight", "bitwright.rope_parameters"
NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def refusal(rope: Mapping[str, Json]) -> str | None:
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        return f"GGUF files with rotary scaling of the kind {kind!r} are not written yet; use the native format."
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "llama.cpp turns whole heads, and this model turns a part of each; use the native format."
    return None


def metadata(rope: Mapping[str, Json]) -> dict[str, Any]:
    found: dict[str, Any] = {"llama.rope.freq_base": float(rope["rope_theta"])}
    if rope.get("rope_type") == "linear":
        found |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "llama3":
        found[KEY] = json.dumps({name: rope[name] for name in NUMBERS})
    return found


def divisors(rope: Mapping[str, Json], head: int) -> Float32[Tensor, "pairs"] | None:
    """What the frequencies are divided by; None where they are as they are."""
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high, length = (float(rope[name]) for name in NUMBERS)
    turns = length / (2 * math.pi) * rope["rope_theta"] ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / factor + share)).float()


def read(metadata: Mapping[str, Any], theta: float, stored: Float32[Tensor, "pairs"] | None, head: int) -> dict[str, Json]:
    """`rope_parameters` of a configuration. Raises BadRequest for scalings that are not known."""
    kind = metadata.get("llama.rope.scaling.type", "none")
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear"))
    if not isinstance(kind, str) or kind not in ("none", "linear") or (kind == "linear" and not positive(factor)):
        raise BadRequest(f"The file has rotary scaling of the kind {kind!r}, which is not read yet; use a file without it.")
    plain = {"rope_type": "default", "rope_theta": theta}
    if stored is None:
        if not positive(factor) or float(factor) == 1.0:
            return plain
        return {"rope_type": "linear", "rope_theta": theta, "factor": float(str(factor))}
    for numbers in (told(metadata.get(KEY)), {**dict(zip(NUMBERS, (float(stored.max()), 1.0, 4.0, 8192)))}):
        found = {"rope_type": "llama3", "rope_theta": theta, **numbers}
        wanted = divisors(found, head) if numbers and numbers["high_freq_factor"] != numbers["low_freq_factor"] else None
        if wanted is not None and wanted.shape == stored.shape and torch.allclose(wanted, stored, rtol=1e-4):
            return found
    if bool((stored == 1).all()):
        return plain
    raise BadRequest(f"{TENSOR} holds factors that no known rotary scaling gives; use a file without it.")


def told(value: Any) -> dict[str, Json]:
    """The numbers under our key; {} where they are not whole."""
    try:
        found = json.loads(value)
        return {name: found[name] for name in NUMBERS if positive(found[name])} if all(map(found.get, NUMBERS)) else {}
    except (TypeError, ValueError, AttributeError, KeyError):
        return {}


def positive(value: Any) -> bool:
    try:
        return 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False
