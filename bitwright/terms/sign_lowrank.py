"""SignLowRank: one sign per weight times a thin product of magnitudes. What BitStack piles up."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class SignLowRank:
    """B * (P Q) in fp32: B of +1 and -1, eight to a byte along the inputs, the first in the highest bit, 1 for +1; factors in fp16.

    A scale of the inputs needs no place of its own: (B * (P Q)) diag(s) = B * (P (Q diag(s))).
    """

    shape: tuple[int, int]
    signs: UInt8[Tensor, "out bytes"]
    p: Float[Tensor, "out k"]
    q: Float[Tensor, "k inp"]

    @classmethod
    def of(cls, R: Float[Tensor, "out inp"], p: Float[Tensor, "out k"], q: Float[Tensor, "k inp"]) -> "SignLowRank":
        """The signs of R (that of 0 is +) and factors rounded to fp16; of each pair the two largest entries are made equal first,
        so that neither side leaves the range of fp16."""
        sides = p.abs().amax(0).clamp_min(1e-30), q.abs().amax(1).clamp_min(1e-30)
        even = (sides[1] / sides[0]).sqrt()
        return cls(
            (R.shape[0], R.shape[1]), packed(R >= 0), (p * even).half().contiguous(), (q / even[:, None]).half().contiguous()
        )

    def decode(self) -> Float[Tensor, "out inp"]:
        signs = sign_table().to(self.signs.device)[self.signs.int()].view(self.shape[0], -1)[:, : self.shape[1]]
        return signs * (self.p.float() @ self.q.float())

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs, "p": self.p, "q": self.q}

    def meta(self) -> dict[str, Json]:
        return self.foretold(self.shape, self.p.shape[1])

    @staticmethod
    def foretold(shape: tuple[int, int], rank: int) -> dict[str, Json]:
        """The meta of a term with so many directions."""
        return {"kind": "sign_lowrank", "shape": list(shape), "rank": rank}

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        (out, inp), rank = meta["shape"], meta["rank"]
        half = torch.float16
        return {"signs": ((out, -(-inp // 8)), torch.uint8), "p": ((out, rank), half), "q": ((rank, inp), half)}

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "SignLowRank":
        return cls(tuple(meta["shape"]), tensors["signs"], tensors["p"], tensors["q"])


def packed(bits: Tensor) -> UInt8[Tensor, "out bytes"]:
    """Rows of truth values as bits, highest first; a ragged last byte ends in zeros."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    return (padded << torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


@cache
def sign_table() -> Float[Tensor, "256 8"]:
    """The eight signs of every byte."""
    return (torch.arange(256)[:, None] >> torch.arange(7, -1, -1) & 1).float() * 2 - 1
