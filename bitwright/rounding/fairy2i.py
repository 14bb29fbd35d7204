"""Fairy2i: a real matrix rounded as two complex ones (arXiv 2512.02901; card: ifairy).

    A [out, inp]  ->  P [out / 2, 2 inp], rows (U_i, W_i) of y = U x + W conj(x)          (terms/widely_linear.py)
    tr(E H E^T) = tr(E_P H_P E_P^T),    H_P = T_1 H T_1^T + T_2 H T_2^T,   T_1, T_2: what the entries of a row of P add to two rows

so that P is a matrix like any other with moments of its own, and `inner` any rounding of it: with nearest it is the paper's, which
looks at no data; GPTQ carries errors between U and W exactly. The grid is the recipe's, over all columns; where its layout has no
groups U and W have parameters of their own, one set each. Two neighbours in a row of P are one complex number: on `roots4` a code
is its phase. Differs from the paper: one scale for real and imaginary parts, as the sectors of both hold the same distribution. A
matrix with an odd side is rounded as it is, and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.layout import Layout
from bitwright.rounding.base import Rounding
from bitwright.rounding.residual import Residual
from bitwright.terms.base import Json, Terms
from bitwright.terms.widely_linear import WidelyLinear, folded, unfolded, widely_linear_meta


@dataclass(frozen=True)
class Fairy2i:
    """`inner`: of the complex matrices."""

    inner: Rounding = Residual()

    def __post_init__(self) -> None:
        if strange := set(self.inner.needs) - {"gram", "cross"}:
            raise BadRequest(f"Complex matrices have no {sorted(strange)[0]!r} of their own; choose a rounding that does without.")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inner.needs

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        shape = (W.shape[0], W.shape[1])
        if odd(shape):
            known.note(f"{shape[0]} x {shape[1]} has an odd side and is no pair of complex matrices: rounded as it is")
            return self.inner(W, coder, known)
        P, moments = unfolded(W), known.once(("widely linear", self.needs), lambda: self.moments(known))
        weight = None if coder.weight is None else priced(coder.weight.expand(shape))
        terms = self.inner(P, Coder.fit(P, self.bands(shape, coder.bands), weight, coder.shared), moments)
        for remark in moments.notes:
            known.note(remark)
        return tuple(WidelyLinear(term) for term in terms)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        if odd(shape):
            return self.inner.metas(shape, bands)
        return tuple(widely_linear_meta(m) for m in self.inner.metas(halved(shape), self.bands(shape, bands)))

    def bands(self, shape: tuple[int, int], bands: Sequence[Band]) -> list[Band]:
        """The recipe's grid on P."""
        layout = Layout(bands[0].layout.rows, bands[0].layout.cols or shape[1]).nearest(halved(shape))
        return [Band(bands[0].grid, layout)]

    def moments(self, known: Known) -> Known:
        """Of the inputs that the rows of P meet."""
        return Known({name: turned(known[name]) for name in self.needs})


def odd(shape: tuple[int, int]) -> bool:
    return any(side % 2 for side in shape)


def halved(shape: tuple[int, int]) -> tuple[int, int]:
    return shape[0] // 2, 2 * shape[1]


def turned(H: Float[Tensor, "inp inp"]) -> Float[Tensor, "twice twice"]:
    """H_P."""
    upper, lower = folded(torch.eye(2 * len(H), dtype=H.dtype, device=H.device)).chunk(2)
    return upper @ H @ upper.T + lower @ H @ lower.T


def priced(weight: Float[Tensor, "out inp"]) -> Float[Tensor, "half twice"]:
    """What an error costs at every entry of P: real parts act on the two diagonal quarters of A, others on the rest."""
    (a, b), (c, d) = (half.chunk(2, 1) for half in weight.chunk(2))
    return torch.stack([a + d, b + c], 2).flatten(1).repeat(1, 2)
