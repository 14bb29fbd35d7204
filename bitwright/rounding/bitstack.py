"""BitStack: a matrix as a pile of sign matrices times thin magnitudes; any prefix of it is a coarser matrix (ICLR 2025, arXiv
2410.23918; card: bitstack).

    R_0 = W diag(s);   B_i = sign(R_{i-1}),   P_i Q_i = the best product of rank k to |R_{i-1}|,   R_i = R_{i-1} - B_i * (P_i Q_i)

Each step minimises |R - B * (P Q)|^2 exactly for its signs: with B fixed that is |(|R| - P Q)|^2, and |R|, all positive, is
nearly of rank one. With s_c = sqrt(H_cc) the objective is sum_c s_c^2 err_c^2, tr(E H E^T) for uncorrelated inputs; s_c plays the
role of the paper's mean norm of channel c (that weighs sequences equally, this weighs tokens), with a floor of a thousandth of
the mean. 1 / s goes into the stored Q, which costs nothing. A step takes 1 + 16 k (out + inp) / (out inp) bits per weight.

Differs from the paper: residuals subtract what is stored (fp16 factors, scaled back), where its code subtracts fp32; the SVD is
randomized with a fixed seed (48 directions more than wanted and four power iterations, as the tail of |R| is flat: with the
card's 16 and two the error after eight steps is 5 % higher); k follows the width, as 16 of it would cost more than the signs on
narrow layers. `first` puts ordinary codes below the pile (the card's mixed stack): beyond about four steps signs halve the error
more slowly than a bit of codes does. Without it the coder's grid is not looked at. O(out inp k) per step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.linalg import sketched_svd
from bitwright.rounding.base import Rounding
from bitwright.terms.base import Json, Terms, decode
from bitwright.terms.sign_lowrank import SignLowRank

FLOOR = 1e-3  # of the mean scale: inputs that hardly ever fire still keep their weights in proportion
MOST = 16  # directions, the paper's number, at which wide layers stop
SHARE = 48  # 16 / 48: factors may cost a third of a bit per weight


@dataclass(frozen=True)
class BitStack:
    """`blocks` steps of `rank` directions (None: as many as cost a third of a bit per weight, 1 to 16) above those of `first`."""

    blocks: int = 16
    rank: int | None = None
    seed: int = 0
    first: Rounding | None = None

    def __post_init__(self) -> None:
        if self.blocks < 1 or (self.rank is not None and self.rank < 1):
            raise ValueError("a stack has at least one block, of at least one direction")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(sorted({"gram", *(self.first.needs if self.first else ())}))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        s = known.once("input scale", lambda: input_scale(known.gram)).double()
        terms: list = list(self.first(W, coder, known)) if self.first else []
        rest = W.double() - decode(tuple(terms)).double() if terms else W.double()
        rank = self.directions((W.shape[0], W.shape[1]))
        for _ in range(self.blocks):  # fp64: LAPACK's fp32 answers depend on where its work space happens to lie
            P, S, Q = sketched_svd((rest * s).abs(), rank, self.seed)
            terms.append(SignLowRank.of(rest, P * S.sqrt(), S.sqrt()[:, None] * Q.T / s))
            rest = rest - terms[-1].decode().double()
        return tuple(terms)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        below = self.first.metas(shape, bands) if self.first else ()
        return (*below, *(SignLowRank.foretold(shape, self.directions(shape)) for _ in range(self.blocks)))

    def directions(self, shape: tuple[int, int]) -> int:
        out, inp = shape
        rank = min(MOST, round(out * inp / (SHARE * (out + inp)))) if self.rank is None else self.rank
        return min(max(1, rank), *shape)


def input_scale(H: Float[Tensor, "inp inp"]) -> Float[Tensor, "inp"]:
    """Root mean square of every input, of mean one and not below the floor, so that the unit of the data does not matter."""
    s = H.diagonal().clamp_min(0).double().sqrt()
    mean = s.mean()
    return s / mean + FLOOR if mean > 0 else torch.ones_like(s)
