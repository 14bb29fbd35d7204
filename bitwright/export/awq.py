"""awq: the checkpoints of AutoAWQ in its GEMM layout; 4 bits, codes and zero points packed along the outputs, w = s (q - z).

    qweight int32 [inp, out / 8]    qzeros int32 [groups, out / 8]    scales fp16 [groups, out]

Eight outputs share a word, in the order 0 2 4 6 1 3 5 7 from the low bits on. Zero points are stored as they are.
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

ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


class AwqPacking:
    method = "awq"
    bits: tuple[int, ...] = (4,)
    ordered = False

    def spec(self, meta: Mapping[str, Any]) -> Spec:
        grid, layout, out, inp = unfold(meta)
        groups = layout.tiles((out, inp))[1]
        return {
            "qweight": ((inp, out // 8), torch.int32),
            "qzeros": ((groups, out // 8), torch.int32),
            "scales": ((groups, out), grid.scale.own.dtype),  # type: ignore[attr-defined]
        }

    def tensors(self, term: Coded) -> dict[str, Tensor]:
        codes, zero, scales = groups_of(term)
        return {"qweight": packed(codes.T), "qzeros": packed(zero), "scales": scales}

    def term(self, meta: Mapping[str, Any], stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> Coded:
        grid, layout, out, inp = unfold(meta)
        codes, zero = (unpacked(stored[name], out) for name in ("qweight", "qzeros"))
        params = {"scale": stored["scales"].T.reshape(-1, 1), "zero": zero.T.reshape(-1, 1).contiguous()}
        if not torch.isfinite(params["scale"]).all():
            raise BadRequest("A scale is NaN or infinite; the files are damaged, download the model again.")
        return Coded((out, inp), grid, layout, codes.T.contiguous(), params)

    def shape(self, stored: Mapping[str, Kept], bits: int) -> tuple[int, int]:
        inp, words = stored["qweight"][0]
        return words * 8, inp

    def config(self, bits: int, group: int, symmetric: bool, ordered: bool, ignored: list[str]) -> dict[str, Json]:
        return {
            "quant_method": "awq",
            "bits": bits,
            "group_size": group,
            "zero_point": not symmetric,
            "version": "gemm",
            "modules_to_not_convert": ignored or ["lm_head"],
        }


def packed(codes: Tensor) -> Tensor:
    """[rows, out] codes to words, eight outputs each."""
    eights = codes.reshape(len(codes), -1, 8)[..., ORDER]
    return pack.pack(eights.reshape(len(codes), -1), 16).view(torch.int32)


def unpacked(words: Tensor, out: int) -> Tensor:
    eights = pack.unpack(pack.octets(words), 16, out).view(len(words), -1, 8)
    return eights[..., ORDER.argsort()].reshape(len(words), out)


def Awq() -> Words:
    return Words(AwqPacking())
