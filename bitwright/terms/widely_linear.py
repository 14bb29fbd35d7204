"""Widely linear: a real matrix held as two complex ones, U and W, whose entries are pairs of neighbours in a row of `inner`.

    y = U x + W conj(x),   x = x_1 + i x_2,  y = y_1 + i y_2,   1 and 2: the upper and the lower half of inputs and outputs
    A = [ Re W + Re U,   Im W - Im U ]          U = ((A_11 + A_22) + i (A_21 - A_12)) / 2
        [ Im W + Im U,   Re U - Re W ]          W = ((A_11 - A_22) + i (A_12 + A_21)) / 2

Every real matrix of even size is such a pair and every pair a matrix, |A|^2 = 2 |U|^2 + 2 |W|^2: nothing is lost and nearest stays
nearest. Source: Fairy2i, arXiv 2512.02901; card: ifairy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.terms import base
from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class WidelyLinear:
    """`inner` [out / 2, 2 inp]: in every row the complex entries of U, then those of W."""

    inner: base.Term

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.inner.shape[0], self.inner.shape[1] // 2

    def decode(self) -> Float[Tensor, "out inp"]:
        return folded(self.inner.decode())

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()

    def meta(self) -> dict[str, Json]:
        return widely_linear_meta(self.inner.meta())

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        return base.spec(meta["inner"])

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "WidelyLinear":
        return cls(base.load(meta["inner"], tensors))


def unfolded(A: Float[Tensor, "out inp"]) -> Float[Tensor, "half twice"]:
    """U and W of a matrix of even size, side by side."""
    (A11, A12), (A21, A22) = (half.chunk(2, 1) for half in A.chunk(2))
    U, W = (A11 + A22, A21 - A12), (A11 - A22, A12 + A21)
    return torch.cat([torch.stack(pair, 2).flatten(1) for pair in (U, W)], 1) / 2


def folded(P: Float[Tensor, "half twice"]) -> Float[Tensor, "out inp"]:
    """Inverse of `unfolded`."""
    (re_u, im_u), (re_w, im_w) = (half.unflatten(1, (-1, 2)).unbind(2) for half in P.chunk(2, 1))
    return torch.cat([torch.cat([re_w + re_u, im_w - im_u], 1), torch.cat([im_w + im_u, re_u - re_w], 1)])


def widely_linear_meta(inner: Mapping[str, Json]) -> dict[str, Json]:
    half, twice = inner["shape"]
    return {"kind": "widely_linear", "shape": [2 * half, twice // 2], "inner": dict(inner)}
