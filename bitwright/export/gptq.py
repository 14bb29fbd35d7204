"""gptq: the checkpoints of AutoGPTQ and GPTQModel; codes packed along the inputs, zero points along the outputs, w = s (q - z).

    qweight int32 [inp b / 32, out]    qzeros int32 [groups, out b / 32]    scales fp16 [groups, out]    g_idx int32 [inp]

The first format stores z - 1, so a zero point of 0 wraps and is lost; `gptq_v2` stores z itself. We write the first where zero
points are symmetric, which every loader knows, and the second where they are not; also where codes have 3 bits, because
GPTQModel (4.0) turns the first into the second with the constants of two words swapped there. g_idx is the group of each input;
groups that follow a permutation (dynamic groups in descending order) are thereby exact. 3-bit codes straddle words.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.export.base import Kept
from bitwright.export.words import Words, groups_of
from bitwright.terms import pack
from bitwright.terms.base import Json, Spec
from bitwright.terms.coded import Coded, unfold


class GptqPacking:
    method = "gptq"
    bits: tuple[int, ...] = (2, 3, 4, 8)
    ordered = True

    def spec(self, meta: Mapping[str, Any]) -> Spec:
        grid, layout, out, inp = unfold(meta)
        b, groups = (grid.levels - 1).bit_length(), layout.tiles((out, inp))[1]
        return {
            "qweight": ((inp * b // 32, out), torch.int32),
            "qzeros": ((groups, out * b // 32), torch.int32),
            "scales": ((groups, out), grid.scale.own.dtype),  # type: ignore[attr-defined]
            "g_idx": ((inp,), torch.int32),
        }

    def tensors(self, term: Coded) -> dict[str, Tensor]:
        codes, zero, scales = groups_of(term)
        levels, cols = term.grid.levels, term.layout.block((term.shape[0], term.shape[1]))[1]
        full = 2 ** (levels - 1).bit_length()
        stored = zero - 1 if first(term.grid.symmetric, (levels - 1).bit_length()) else zero  # type: ignore[attr-defined]
        place = torch.arange(term.shape[1]) if term.columns is None else term.columns.long().argsort()
        return {
            "qweight": pack.pack(codes, full).view(torch.int32).T.contiguous(),
            "qzeros": pack.pack(stored, full).view(torch.int32),
            "scales": scales,
            "g_idx": (place // cols).to(torch.int32),
        }

    def term(self, meta: Mapping[str, Any], stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> Coded:
        grid, layout, out, inp = unfold(meta)
        groups = layout.tiles((out, inp))[1]
        codes = pack.unpack(pack.octets(stored["qweight"].T), grid.levels, inp)
        zero = pack.unpack(pack.octets(stored["qzeros"]), grid.levels, out)
        if config.get("checkpoint_format", "gptq") == "gptq":
            zero = (zero + 1) & (grid.levels - 1)  # a zero point of 0 wrapped; 2^b cannot be meant
        columns = None
        if meta["columns"] is not None:
            columns = order(stored["g_idx"], groups, inp)
            codes = codes[:, columns]
        params = {"scale": stored["scales"].T.reshape(-1, 1), "zero": zero.T.reshape(-1, 1).contiguous()}
        if not torch.isfinite(params["scale"]).all():
            raise BadRequest("A scale is NaN or infinite; the files are damaged, download the model again.")
        return Coded((out, inp), grid, layout, codes, params, columns)

    def shape(self, stored: Mapping[str, Kept], bits: int) -> tuple[int, int]:
        words, out = stored["qweight"][0]
        return out, words * 32 // bits

    def config(self, bits: int, group: int, symmetric: bool, ordered: bool, ignored: list[str]) -> dict[str, Json]:
        found: dict[str, Json] = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": ordered,
            "sym": symmetric,
            "lm_head": False,
            "checkpoint_format": "gptq" if first(symmetric, bits) else "gptq_v2",
            "pack_dtype": "int32",
            "meta": {"quantizer": ["bitwright"]},
        }
        skipped: dict[str, Json] = {f"-:{name}": {} for name in ignored if name != "lm_head"}
        return found | ({"dynamic": skipped} if skipped else {})


def first(symmetric: bool, bits: int) -> bool:
    """Whether zero points are stored by the first format."""
    return symmetric and bits != 3


def order(g_idx: Tensor, groups: int, inp: int) -> Tensor:
    """The permutation that brings the inputs of each group together. Raises BadRequest where groups are not equally large."""
    found = g_idx.long()
    known = found.shape == (inp,) and bool(((found >= 0) & (found < groups)).all())  # before a place for each group is made
    if not known or not (torch.bincount(found, minlength=groups) == inp // groups).all():
        raise BadRequest("g_idx does not give every group the same number of inputs; the files are damaged, download them again.")
    return found.argsort(stable=True)


def Gptq() -> Words:
    return Words(GptqPacking())
