"""Types without blocks: the numbers themselves, as the only leaf."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from bitwright.export.gguf.blocks.base import Leaves


@dataclass(frozen=True)
class Plain:
    """The leaf is "values" [rows, inp] in its own dtype."""

    name: str
    id: int
    dtype: torch.dtype
    weights: int = 1
    group: int = 1
    levels: int = 0

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    def unpack(self, data: UInt8[Tensor, "rows nbytes"]) -> Leaves:
        if data.shape[1] % self.bytes:
            raise ValueError(f"rows of {data.shape[1]} bytes are not whole numbers of {self.bytes} bytes")
        data = data.contiguous()
        if data.storage_offset() % self.bytes or data.data_ptr() % self.bytes:  # not where torch reads numbers
            data = data.clone()
        return {"values": data.view(self.dtype)}

    def pack(self, leaves: Leaves) -> UInt8[Tensor, "rows nbytes"]:
        return leaves["values"].to(self.dtype).contiguous().view(torch.uint8)

    def decode(self, leaves: Leaves) -> Float32[Tensor, "rows inp"]:
        return leaves["values"].float()


PLAIN = (Plain("F32", 0, torch.float32), Plain("F16", 1, torch.float16), Plain("BF16", 30, torch.bfloat16))
