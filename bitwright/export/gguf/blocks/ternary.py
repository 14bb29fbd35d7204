"""TQ1_0: five trits in a byte, 256 weights in 54 bytes; w = d (code - 1).

A byte is a fixed-point fraction of 3^5: byte = ceil(256 v / 243) for the number v of five trits, most significant first. Then the
trits come out at the top, one multiplication by 3 each, without a division:

    trit n = ((3^n byte mod 256) 3) >> 8

13 of the 256 bytes are no such fraction; they are read as llama.cpp reads them and written as the byte of the same trits. The last
16 weights lie in bytes of four trits, whose fifth is 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from bitwright.export.gguf.blocks.base import Leaves, affine, flat, in_blocks, merge, split

# bytes, and trits in each: byte m of a part holds the weights m, m + bytes, m + 2 bytes .. of those it covers
PARTS = {"wide": (32, 5), "narrow": (16, 5), "tail": (4, 4)}
SIZES = {"wide": 32, "narrow": 16, "tail": 4, "scale": 2}


@dataclass(frozen=True)
class Trits:
    name: str = "TQ1_0"
    id: int = 34
    weights: int = 256
    bytes: int = 54
    group: int = 256
    levels: int = 3

    def unpack(self, data: UInt8[Tensor, "rows nbytes"]) -> Leaves:
        parts = split(data, SIZES)
        digits = []
        for name, (_, count) in PARTS.items():
            powers = torch.tensor([3**n for n in range(count)], dtype=torch.uint8, device=data.device)
            rest = parts[name][..., None, :] * powers[:, None]  # uint8 wraps: mod 256
            digits.append(((rest.to(torch.int16) * 3) >> 8).to(torch.uint8).flatten(2))
        return {"codes": torch.cat(digits, -1).flatten(1), "scale": flat(parts["scale"], torch.float16)}

    def pack(self, leaves: Leaves) -> UInt8[Tensor, "rows nbytes"]:
        codes = in_blocks(leaves["codes"], self.weights, self.levels).to(torch.int32)
        parts = {"scale": in_blocks(leaves["scale"], 1)}
        for (name, (size, count)), digits in zip(PARTS.items(), codes.split([s * n for s, n in PARTS.values()], dim=-1)):
            powers = torch.tensor([3 ** (4 - n) for n in range(count)], dtype=torch.int32, device=codes.device)
            value = (digits.unflatten(-1, (count, size)) * powers[:, None]).sum(-2)
            parts[name] = ((value * 256 + 242) // 243).to(torch.uint8)
        return merge(parts, SIZES)

    def decode(self, leaves: Leaves) -> Float32[Tensor, "rows inp"]:
        return affine(leaves["codes"].float() - 1, leaves["scale"].float())
