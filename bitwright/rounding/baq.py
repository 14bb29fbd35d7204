"""BAQ: GPTQ tells how much loss each input column causes; levels move between columns until all cause the same (arXiv 2506.05664;
card: baq).

    W - Q = E U,  U^T U = H^-1:   tr((W - Q) H (W - Q)^T) = sum_j |e_j|^2,   |e_j|^2 ~ C_j L_j^-slope   =>   L_j ~ C_j^(1/slope)

GPTQ runs at equal numbers of levels; the errors e_j that it pushed on, read off its result, split the objective into columns; the
bytes of the codes are dealt out again by them (allocation/water.py), and GPTQ runs from the original weights once more. The gain is
the arithmetic over the geometric mean of the losses: large where columns differ by decades. Needs an uneven grid; bands on others
keep theirs. Any grid whose groups have counts of their own serves: on `ragged` columns compete, on `compand` its groups.
Differs from the paper: bytes are exact, not a mean of logarithms; one H serves both runs; `runs` may measure again at the new
levels, the best result is kept. Ours: `last`, for instance coordinate descent on the levels found, and the grid's search for
ranges: those of whole rows are far too wide for few levels. O(runs out inp^2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.allocation.water import allot
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.base import Kin
from bitwright.grids.uneven import Uneven, level_counts
from bitwright.linalg import inverse_factor, objective
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ, ordered
from bitwright.terms.base import Json, Terms, decode


@dataclass(frozen=True)
class Baq:
    """`slope`: how the logarithm of a column's loss falls with its bits; `order`: of GPTQ; `runs` of it after the first;
    `last`: another rounding that codes the matrix on the levels that were found."""

    slope: float = 1.95
    order: Literal["natural", "descending", "group-aware"] = "natural"
    damp: float = 0.01
    runs: int = 1
    last: Rounding | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(sorted({"gram", *(self.last.needs if self.last else ())}))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        sweep = GPTQ(self.order, damp=self.damp)
        if not any(isinstance(band.grid, Uneven) for band in coder.bands):
            known.note("no grid here has levels to move between columns: this is plain GPTQ")
            return (self.last or sweep)(W, coder, known)
        terms = sweep(W, coder, known)
        found: list[tuple[float, Coder, Terms]] = []
        for _ in range(self.runs):
            coder = self.moved(W, coder, losses(W - decode(terms).to(W.dtype), coder, known, self.order, self.damp))
            terms = sweep(W, coder, known)
            found.append((objective(W - decode(terms).to(W.dtype), known.gram.to(W.dtype)), coder, terms))
        _, coder, terms = min(found, key=lambda one: one[0])
        return self.last(W, coder, known) if self.last else terms

    def moved(self, W: Float[Tensor, "out inp"], coder: Coder, loss: Float[Tensor, "out inp"]) -> Coder:
        """The coder with the levels of every uneven band dealt out by these losses at the levels it has."""
        params = []
        for band, p in zip(coder.bands, coder.params):
            if isinstance(band.grid, Uneven):
                shape = (W.shape[0], band.take(W).shape[1])
                alone = band.layout.split(band.take(loss)) * level_counts(band.grid, p)[:, None].double() ** self.slope
                count = allot(band.grid, band.layout, band.layout.join(alone, shape), self.slope)
                p = band.grid.recount(band.layout.split(band.take(W)), p, count, Kin(band.layout.tiles(shape)[1]))
            params.append(p)
        return replace(coder, params=tuple(params))

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        return (self.last or GPTQ(self.order)).metas(shape, bands)


def losses(
    gap: Float[Tensor, "out inp"], coder: Coder, known: Known, order: str = "natural", damp: float = 0.01
) -> Float[Tensor, "out inp"]:
    """Half the squared errors that GPTQ in this order pushed on when it left W - Q = `gap`: its objective, split into weights."""
    H, columns = known.gram, torch.cat(ordered(coder, known.gram.diagonal(), order)).to(gap.device)
    U = known.once(
        ("inverse factor", damp, tuple(columns.tolist())),
        lambda: inverse_factor(H[columns][:, columns].to(gap.dtype), damp, known.note),
    )
    pushed = torch.linalg.solve_triangular(U, gap[:, columns], upper=True, left=False)
    return pushed[:, columns.argsort()].square() / 2


def column_losses(gap: Float[Tensor, "out inp"], coder: Coder, known: Known, damp: float = 0.01) -> Float[Tensor, "inp"]:
    """What each input column contributes to GPTQ's objective, in natural order."""
    return losses(gap, coder, known, "natural", damp).sum(0)
