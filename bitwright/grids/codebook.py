"""Codebook: K points of R^v learned by k-means, one list for the whole matrix: vector quantization (card: vq4dit, its codebook).

    x^ = s C[c],   C [levels, width] fp16 once per matrix,   s fp16 once per group, or no s

log2(K) / v bits per weight and 16 K v for the codebook, which on a small matrix is what it costs: 256 x 4 on 256 x 256 weights
are 2 + 0.25 bits. Differs from VQ4DiT (arXiv 2408.17131): words are fp16, not fp32; `scale` gives every group (a row, by the
layout) the size of its own weights before they are clustered; `weighted` puts the inputs' second moments into the clustering.
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
class Codebook:
    """`levels` words of `width` weights, placed in at most `rounds` iterations; `scale`: how that of a group is stored, or none."""

    levels: int = 256
    width: int = 4
    scale: FloatScale | None = None
    weighted: bool = False
    rounds: int = 100
    books = 1

    def __post_init__(self) -> None:
        if not (2 <= self.levels <= 4096 and 2 <= self.width <= 16 and self.rounds >= 0):
            raise BadRequest(
                f"A codebook has 2 to 4096 words of 2 to 16 weights, not {self.levels} of {self.width}; choose others, "
                "or sums of codebooks (`additive`) for more."
            )

    @property
    def words(self) -> int:
        return self.levels

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
        """The means of the clusters; a word that no code names stays."""
        return learned.refit(self, x, c, p, weight)
