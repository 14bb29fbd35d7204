"""LoRC: the rounding error as a thin product, kept beside the codes (ZeroQuant-V2, arXiv 2303.08302; card: zeroquant-v2).

    min over rank m of tr((E - A B) H (E - A B)^T):   H = L L^T,  E L = P S Q^T,  A = P_m S_m^1/2,  B = S_m^1/2 Q_m^T L^-1

Eckart-Young in the norm of the data. The paper's plain SVD (L = I) is `whiten=False`; on the nearly white error of nearest
rounding it removes a tenth of what the whitened one does. Differs from the paper in that, and in refitting B by least squares
once A is rounded to its stored type. E comes from the stored grid. Costs 16 m (out + inp) bits: much on small matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.linalg import dead_inputs, root
from bitwright.terms.base import Json, Terms
from bitwright.terms.low_rank import LowRank, low_rank_meta

FULL = 1024  # up to this width the SVD is exact; beyond, subspace iteration finds the leading directions


@dataclass(frozen=True)
class Lorc:
    """Rank `rank`, factors stored as `dtype`; `whiten` by the second moments of the inputs."""

    rank: int = 8
    whiten: bool = True
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    before = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gram",) if self.whiten else ()

    def __call__(self, E: Float[Tensor, "out inp"], known: Known) -> Terms:
        rank, dtype = min(self.rank, *E.shape), getattr(torch, self.dtype)
        if rank == 0:
            return ()
        if self.whiten:  # an input that never fires is worth no rank
            E = E.masked_fill(dead_inputs(known.gram), 0)
        E = E.double()  # LAPACK's fp32 answers depend on where its work space happens to lie; rounded from fp64 they do not
        L = known.once("root", lambda: root(known.gram.double())) if self.whiten else None
        P, S, Q = leading(E if L is None else E @ L, rank)
        A, B = P * S.sqrt(), Q.T * S.sqrt()[:, None]
        if L is not None:
            B = torch.linalg.solve_triangular(L, B, upper=False, left=False)
        first = LowRank.of(A, B, dtype)
        if dtype == torch.float32:
            return (first,)
        A = first.a.double()  # as stored (int8: up to the scales, which go into B): its best partner is the same for every H
        B = torch.linalg.lstsq(A, E).solution
        return (LowRank.of(A, B, dtype),)

    def metas(self, shape: tuple[int, int]) -> tuple[Mapping[str, Json], ...]:
        rank = min(self.rank, *shape)
        return (low_rank_meta(shape, rank, getattr(torch, self.dtype)),) if rank else ()


def leading(M: Float[Tensor, "out inp"], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """P [out, rank], S [rank], Q [inp, rank] of the largest singular values."""
    if min(M.shape) <= FULL:
        P, S, Qt = torch.linalg.svd(M, full_matrices=False)
        return P[:, :rank], S[:rank], Qt[:rank].T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        P, S, Q = torch.svd_lowrank(M, q=min(rank + 10, *M.shape), niter=4)
    return P[:, :rank], S[:rank], Q[:, :rank]
