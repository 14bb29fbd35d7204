"""LowRank: A B, two thin factors in a stored type. What LoRC adds, and what adapters are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class LowRank:
    """`a` [out, m] times diag(`scale`) times `b` [m, inp], in fp32. Float factors have scales of 1; int8 ones need them."""

    a: Num[Tensor, "out m"]
    b: Num[Tensor, "m inp"]
    scale: Float[Tensor, "m"] | None = None

    @classmethod
    def of(cls, a: Float[Tensor, "out m"], b: Float[Tensor, "m inp"], dtype: torch.dtype) -> "LowRank":
        """Factors rounded to a stored type; int8 by the largest magnitude of each direction. Contiguous, as they will be read
        back: a product of the same numbers in another order of memory rounds differently."""
        a, b = a.contiguous(), b.contiguous()
        if dtype != torch.int8:
            return cls(a.to(dtype), b.to(dtype))
        tops = a.abs().amax(0).clamp_min(1e-30), b.abs().amax(1).clamp_min(1e-30)
        codes = torch.round(127 * a / tops[0]), torch.round(127 * b / tops[1][:, None])
        return cls(codes[0].to(dtype), codes[1].to(dtype), (tops[0] * tops[1] / 127**2).float())

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape[0], self.b.shape[1]

    def decode(self) -> Float[Tensor, "out inp"]:
        a = self.a.float() if self.scale is None else self.a.float() * self.scale
        return a @ self.b.float()

    def times(self, x: Float[Tensor, "n inp"]) -> Float[Tensor, "n out"]:
        """x (a b)^t, through the thin side."""
        inner = x @ self.b.to(x.dtype).T
        return (inner if self.scale is None else inner * self.scale.to(x.dtype)) @ self.a.to(x.dtype).T

    def tensors(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b} | ({} if self.scale is None else {"scale": self.scale})

    def meta(self) -> dict[str, Json]:
        return low_rank_meta(self.shape, self.a.shape[1], self.a.dtype)

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        (out, inp), rank, dtype = meta["shape"], meta["rank"], getattr(torch, meta["dtype"])
        factors: Spec = {"a": ((out, rank), dtype), "b": ((rank, inp), dtype)}
        return factors | ({"scale": ((rank,), torch.float32)} if dtype == torch.int8 else {})

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "LowRank":
        return cls(tensors["a"], tensors["b"], tensors.get("scale"))


def low_rank_meta(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float16) -> dict[str, Json]:
    return {"kind": "low_rank", "shape": list(shape), "rank": rank, "dtype": str(dtype).removeprefix("torch.")}
