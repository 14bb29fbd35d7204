"""Nested: integers of `bits` bits that also serve fewer (Double Rounding, arXiv 2502.01199; card: double-rounding).

    W_h = clip(round(W / s)),     W_l = clip(round(W_h / 2^D)),   D = h - l,     W^_l = s 2^D W_l

The second rounding is to nearest, not a truncation, and clips: 127 / 64 would be 2, which two bits do not have. `shared` is the
paper's one scale. Without it every width has a scale (and, not symmetric, a zero) of its own in every group, and the second
rounding is that of the number the high code stands for:  W_l = clip(round(s_h W_h / s_l)).  That is the freedom a model needs
that was not trained for all widths at once: the best range shrinks with the width. Costs 16 bits (24 with a zero) per group and
width. Which of the two neighbours a low code is may also be stored, one bit per weight: rounding/double_rounding.py.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Leaf, Params
from bitwright.grids.fit import AbsMax, Fit
from bitwright.grids.integer import Integer, divisor
from bitwright.grids.scales import Float as FloatScale


@dataclass(frozen=True)
class Nested:
    """`bits` bits are stored, `serves` names the widths that can be had, widest first."""

    bits: int = 8
    serves: tuple[int, ...] = (8, 6, 4, 3, 2)
    symmetric: bool = True
    shared: bool = False
    by: Fit = AbsMax()
    scale: FloatScale = FloatScale()
    width = 1

    def __post_init__(self) -> None:
        falling = sorted(set(self.serves), reverse=True)
        if list(self.serves) != falling or not self.serves or self.serves[0] != self.bits or not 1 <= falling[-1] <= self.bits <= 8:
            raise BadRequest(f"A nested grid of {self.bits} bits serves falling widths from {self.bits} on, not {self.serves}.")
        if self.shared and not self.symmetric:
            raise BadRequest("One scale for all widths has no zero points; make the nested grid symmetric, or do not share.")
        self.at(self.bits)

    @property
    def levels(self) -> int:
        return 2**self.bits

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        count = 1 if self.shared else len(self.serves)
        zero = {} if self.symmetric else {"zero": Leaf(torch.uint8, count, self.levels)}
        return {"scale": Leaf(self.scale.dtype, count)} | zero

    def at(self, bits: int) -> Integer:
        """The grid of one width."""
        return Integer(2**bits, self.symmetric, self.by, self.scale)

    def params(self, p: Params, bits: int) -> Params:
        """The parameters of one width."""
        if self.shared:
            wide = p["scale"].float() * 2 ** (self.bits - bits)
            return {"scale": wide.clamp_max(torch.finfo(self.scale.dtype).max).to(self.scale.dtype)}
        i = self.serves.index(bits)
        return {name: leaf[:, i : i + 1] for name, leaf in p.items()}

    def below(self, c: Ints[Tensor, "g n"], p: Params, bits: int) -> Float[Tensor, "g n"]:
        """The lower of the two codes of a width between which the number of a stored code lies."""
        scale, zero = self.at(bits).affine(self.params(p, bits))
        return torch.floor(self.decode(c, p) / divisor(scale) + zero).clamp_(0, 2**bits - 2)

    def lowered(self, c: Ints[Tensor, "g n"], p: Params, bits: int, turn: Ints[Tensor, "g n"] | None = None) -> Ints[Tensor, "g n"]:
        """Codes of a width: the second rounding, to nearest, or (`turn`: 0 or 1) to the lower or upper neighbour."""
        if turn is None:
            return self.at(bits).encode(self.decode(c, p), self.params(p, bits))
        return (self.below(c, p, bits) + turn).to(torch.uint8)

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        each = [self.at(bits).fit(x, weight, kin) for bits in (self.serves[:1] if self.shared else self.serves)]
        return {name: torch.cat([p[name] for p in each], 1) for name in self.leaves}

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        return self.at(self.bits).encode(x, self.params(p, self.bits))

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        return self.at(self.bits).decode(c, self.params(p, self.bits))

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Least squares of the widest scale; the others stay."""
        best = self.at(self.bits).refit(x, c, self.params(p, self.bits), weight)
        return {name: torch.cat([best[name], leaf[:, 1:]], 1) for name, leaf in p.items()}

    def affine(self, p: Params) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"] | float]:
        """Scale and zero of the widest, fp32: what a kernel for equally spaced grids needs."""
        return self.at(self.bits).affine(self.params(p, self.bits))
