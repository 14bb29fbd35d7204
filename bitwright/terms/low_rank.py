"""LowRank: A B, two thin factors in a stored float type. What LoRC adds, and what adapters are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class LowRank:
    """`a` [out, m] times `b` [m, inp], multiplied in fp32; both have the same stored dtype."""

    a: Float[Tensor, "out m"]
    b: Float[Tensor, "m inp"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape[0], self.b.shape[1]

    def decode(self) -> Float[Tensor, "out inp"]:
        return self.a.float() @ self.b.float()

    def tensors(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}

    def meta(self) -> dict[str, Json]:
        return low_rank_meta(self.shape, self.a.shape[1], self.a.dtype)

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        (out, inp), rank, dtype = meta["shape"], meta["rank"], getattr(torch, meta["dtype"])
        return {"a": ((out, rank), dtype), "b": ((rank, inp), dtype)}

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "LowRank":
        return cls(tensors["a"], tensors["b"])


def low_rank_meta(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float16) -> dict[str, Json]:
    return {"kind": "low_rank", "shape": list(shape), "rank": rank, "dtype": str(dtype).removeprefix("torch.")}
