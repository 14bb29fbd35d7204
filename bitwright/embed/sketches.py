"""Fewer coordinates, the same inner products in the mean: E <psi(x), psi(y)> = <x, y>. Linear, so a sum is sketched part by part.

`Signs`   psi(x) = S x / sqrt(out), every entry of S +1 or -1 (Johnson and Lindenstrauss with coins; Achlioptas, 2003)
`Slots`   every coordinate, its sign thrown, is added to one place (count sketch; Charikar, Chen, Farach-Colton, 2002)

The drawn numbers are what is kept: a seed would mean something else in another library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int8, Int32
from torch import Tensor


@runtime_checkable
class Sketch(Protocol):
    """A linear map."""

    def __call__(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n out"]: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def to(self, device: torch.device) -> "Sketch": ...


@dataclass(frozen=True, eq=False)
class Signs:
    signs: Int8[Tensor, "out inp"]

    @classmethod
    def drawn(cls, inp: int, out: int, gen: torch.Generator) -> "Signs":
        return cls(coins((out, inp), gen))

    def __call__(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n out"]:
        return x @ self.signs.T.to(x.dtype) / len(self.signs) ** 0.5

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs}

    def to(self, device: torch.device) -> "Signs":
        return Signs(self.signs.to(device))


@dataclass(frozen=True, eq=False)
class Slots:
    """`slots[i]` is where coordinate i goes. `same`: every coordinate its own place and no sign thrown, which is no sketch."""

    slots: Int32[Tensor, "inp"]
    signs: Int8[Tensor, "inp"]
    out: int

    @classmethod
    def drawn(cls, inp: int, out: int, gen: torch.Generator) -> "Slots":
        slots = torch.randint(out, (inp,), generator=gen, dtype=torch.int32)
        return cls(slots, coins((inp,), gen), out)

    @classmethod
    def same(cls, inp: int) -> "Slots":
        every = torch.arange(inp, dtype=torch.int32)
        return cls(every, torch.ones(inp, dtype=torch.int8), inp)

    def __call__(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n out"]:
        return x.new_zeros(len(x), self.out).index_add_(1, self.slots, x * self.signs)

    def tensors(self) -> dict[str, Tensor]:
        return {"slots": self.slots, "signs": self.signs, "out": torch.tensor(self.out)}

    def to(self, device: torch.device) -> "Slots":
        return Slots(self.slots.to(device), self.signs.to(device), self.out)


def coins(shape: tuple[int, ...], gen: torch.Generator) -> Int8[Tensor, "..."]:
    return torch.randint(2, shape, generator=gen, dtype=torch.int8) * 2 - 1


def sketch_of(tensors: Mapping[str, Tensor]) -> Sketch:
    if "slots" not in tensors:
        return Signs(tensors["signs"])
    return Slots(tensors["slots"], tensors["signs"], int(tensors["out"]))
