"""Turns: for every weight and every lower width of a nested grid, which of two neighbours its code is. Adds nothing to the matrix
at full width; a model that is loaded at a lower width becomes what these bits say."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.terms import pack
from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class Turns:
    """`planes`: width -> 0 (the lower neighbour) or 1 (the upper) for every weight."""

    planes: Mapping[int, Ints[Tensor, "out inp"]]

    @property
    def shape(self) -> tuple[int, int]:
        out, inp = next(iter(self.planes.values())).shape
        return out, inp

    def decode(self) -> Float[Tensor, "out inp"]:
        return torch.zeros(self.shape, device=next(iter(self.planes.values())).device)

    def times(self, x: Float[Tensor, "n inp"]) -> Float[Tensor, "n out"]:
        return x.new_zeros(len(x), self.shape[0])

    def tensors(self) -> dict[str, Tensor]:
        return {f"turn{bits}": pack.pack(plane, 2) for bits, plane in self.planes.items()}

    def meta(self) -> dict[str, Json]:
        return turns_meta(self.shape, list(self.planes))

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        out, inp = meta["shape"]
        return {f"turn{bits}": ((out, pack.width(inp, 2)), torch.uint8) for bits in meta["widths"]}

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Turns":
        return cls({bits: pack.unpack(tensors[f"turn{bits}"], 2, meta["shape"][1]) for bits in meta["widths"]})


def turns_meta(shape: tuple[int, int], widths: list[int]) -> dict[str, Json]:
    return {"kind": "turns", "shape": list(shape), "widths": widths}
