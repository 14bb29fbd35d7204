"""CVXQ: bits per unit by one price, units of rows alike (arXiv 2409.02026, "Radio" 2505.03031; card: cvxq). The part of one matrix.

    min sum_u P_u G_u^2 S_u^2 4^-B_u s.t. sum_u P_u B_u <= bits,   G^2: mean squared gradient,  S^2: variance about the median

Rows are sorted by log2 of variance times G^2 and cut into clusters as high as the layout's blocks; on Layout(g, 1) a unit is g rows
of one input column. Depths follow from one water level (allocation/water.py), points from the grid, codes are the nearest.
G^2 is the statistic `fisher` [out, inp], or, without any backward pass, the diagonal of `gram`: the exact G^2 of the layer's own
output. Differs from the paper: the price is found by a sort, to the byte, not by dual ascent; nothing is alternated (G^2 stays that
of the model that was measured), and outputs get no bias: the linears of a Llama have none, an architecture that engines know has no
place for one, and its file would not load. What a 0-bit unit shifts stays shifted, where a rank-1 `lorc` term, whose directions
include that of the mean input, takes it back at the price of a row and a column. O(weights log weights).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.water import allot
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas
from bitwright.errors import BadRequest
from bitwright.grids.uneven import Uneven
from bitwright.terms.base import Json, Term, Terms
from bitwright.terms.rows import Rows, by_cluster, rows_meta


@dataclass(frozen=True)
class Cvxq:
    """`sensitivity`: the statistic that gives the mean squared gradient of every weight."""

    sensitivity: Literal["fisher", "gram"] = "fisher"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.sensitivity,)

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        G = squared_gradients(known, self.sensitivity, (W.shape[0], W.shape[1])).to(W.dtype)
        terms: list[Term] = []
        for i, (band, plain) in enumerate(zip(coder.bands, coder.terms(W))):
            if isinstance(band.grid, Uneven):
                terms.append(sorted_rows(W, G, band, coder, i))
            else:
                known.note("a grid here has no levels to move between groups: it is rounded to nearest")
                terms.append(plain)
        return tuple(terms)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        clusters = [shape[0] // band.layout.block(shape)[0] if isinstance(band.grid, Uneven) else 1 for band in bands]
        return tuple(rows_meta(m, n) if n > 1 else m for m, n in zip(metas(shape, bands), clusters))


def squared_gradients(known: Known, name: str, shape: tuple[int, int]) -> Float[Tensor, "out inp"]:
    """Raises BadRequest where the statistic is not of this matrix."""
    G = known.gram.diagonal().clamp_min(0).expand(shape) if name == "gram" else known[name]
    if tuple(G.shape) != shape or not torch.isfinite(G).all():
        raise BadRequest(
            f"The statistic {name!r} of a {shape[0]} x {shape[1]} matrix is {' x '.join(map(str, G.shape))} or not finite; "
            "collect the mean squared gradient of every weight, or weigh by 'gram'."
        )
    return G


def clusters(W: Float[Tensor, "out inp"], G: Float[Tensor, "out inp"], height: int) -> Ints[Tensor, "out"]:
    """For every row its cluster of `height`, by variance times mean squared gradient, ascending."""
    key = W.double().var(1, correction=0).clamp_min(1e-300).log2() + G.double().mean(1).clamp_min(1e-300).log2()
    return key.argsort(stable=True).argsort() // height


def sorted_rows(W: Float[Tensor, "out inp"], G: Float[Tensor, "out inp"], band: Band, coder: Coder, i: int) -> Term:
    """One uneven band: rows sorted, depths dealt out, coded to nearest."""
    part, gradients, shape, grid = band.take(W), band.take(G), coder.inner(i), band.grid
    height = band.layout.block(shape)[0]
    cluster = clusters(part, gradients, height)
    order, count = by_cluster(cluster), shape[0] // height
    part, gradients = part[order], gradients[order]
    x = band.layout.split(part)
    spread = (x - x.median(1, keepdim=True).values).square().mean(1, keepdim=True)
    loss = spread.double() * band.layout.split(gradients).double().mean(1, keepdim=True)
    depths = allot(grid, band.layout, band.layout.join(loss.expand_as(x), shape), 2.0)  # type: ignore[arg-type]
    start = grid.fit(x) if grid.leaves["count"].shared != 1 else {}
    params = grid.recount(x, start, depths)  # type: ignore[attr-defined]
    (coded,) = Coder(shape, (Band(grid, band.layout),), (params,)).terms(part)
    coded = replace(coded, shape=coder.shape, columns=band.columns)
    return Rows(coded, cluster, count) if count > 1 else coded
