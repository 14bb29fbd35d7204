"""Codecs of scales: how a group's scale is stored. `store` rounds to what will be on disk, `read` gives the number back."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float as Floats
from jaxtyping import Shaped
from torch import Tensor


@runtime_checkable
class Scale(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...

    def store(self, scale: Floats[Tensor, "*g"]) -> Shaped[Tensor, "*g"]:
        """Positive scales to stored precision, never to zero."""

    def read(self, stored: Shaped[Tensor, "*g"]) -> Floats[Tensor, "*g"]:
        """fp32 of what is stored."""


@dataclass(frozen=True)
class Float:
    """An IEEE or brain float. fp16 keeps 11 bits of a scale and is what most engines read."""

    name: Literal["float16", "bfloat16", "float32"] = "float16"

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)

    def store(self, scale: Floats[Tensor, "*g"]) -> Shaped[Tensor, "*g"]:
        info = torch.finfo(self.dtype)
        tiny = 2.0**-24 if self.name == "float16" else info.tiny  # fp16 may use its subnormals
        return scale.clamp(tiny, info.max).to(self.dtype)

    def read(self, stored: Shaped[Tensor, "*g"]) -> Floats[Tensor, "*g"]:
        return stored.float()
