"""Additive: a sum of K learned vectors times the scale of the group: AQLM's points (arXiv 2401.06118; card: pv-tuning).

    x^ = s (C_1[c_1] + ... + C_K[c_K]),   C_k [words, width] fp16 once per matrix,   s fp16 per group (Layout(1, None): per row)

words^K points for the price of K words: K log2(words) / width bits per weight, 16 K words width for the books and 16 per group. On
a small matrix the books are most of it: 2 x 256 x 8 on 256 x 256 weights are 2 + 1 bits. The K digits of a vector are stored as
one code below words^K <= 65536, so two books of 256 take two bytes. The books start as k-means of what those before have left,
and rounding/aqlm.py then fits them to the layer's output. Differs from AQLM: scales start as root mean squares, clusters weigh
errors by s^2 and, if `weighted`, by the inputs' second moments; the nearest sum is found exactly and not by a beam, so that this
is a grid of points like any other and GPTQ, coordinate descent and trained codes work on it. Fewer iterations: what is
lost is found again by Aqlm.
"""

from dataclasses import dataclass

from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids import learned
from bitwright.grids.base import ALONE, Kin, Leaf, Params
from bitwright.grids.scales import Float as FloatScale


@dataclass(frozen=True)
class Additive:
    """`books` books of `words` words of `width` weights, each placed in at most `rounds` iterations; `scale`: how that of a group
    is stored, or none."""

    books: int = 2
    words: int = 256
    width: int = 8
    scale: FloatScale | None = FloatScale()
    weighted: bool = False
    rounds: int = 25

    def __post_init__(self) -> None:
        if not (1 <= self.books <= 8 and 2 <= self.words <= 4096 and 2 <= self.width <= 16 and self.rounds >= 0):
            raise BadRequest(
                f"A sum has 1 to 8 books of 2 to 4096 words of 2 to 16 weights, not {self.books} of {self.words} of {self.width}; "
                "choose others."
            )
        if self.words**self.books > 2**16:
            raise BadRequest(
                f"{self.books} books of {self.words} words are {self.words**self.books} sums, and a code has at most 65536; "
                "take fewer books or words."
            )

    @property
    def levels(self) -> int:
        return self.words**self.books

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gram",) if self.weighted else ()

    @property
    def leaves(self) -> dict[str, Leaf]:
        return learned.leaves(self.books * self.words * self.width, self.scale)

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        return learned.fit(self, x, weight, kin)

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g m"]:
        return learned.encode(self, x, p)

    def decode(self, c: Ints[Tensor, "g m"], p: Params) -> Float[Tensor, "g n"]:
        return learned.decode(self, c, p)

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g m"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """All books together by least squares; words that no code names stay."""
        return learned.refit(self, x, c, p, weight)
