"""Two grids inside one matrix: blocks of input columns that matter most on a finer grid than the others.

    bands   the `share` of column blocks with the highest score -> `high`, in groups of `group`;   the rest -> the recipe's
    inner   any rounding, over both bands at once: GPTQ carries the errors of one into the other

What a column's score is (`by`), added up over its block and, where it looks at weights, over the outputs:
    hessian   (max - min of the block)^2 / U_jj^2,  U^T U = H^-1 in the order of GPTQ: what a step's error costs where it is made
    range     max - min of the block: what Fast 2-bit (arXiv 2311.16442; card: fast-2bit) shows to fail alone
    input     H_jj, the second moment of the input (PTQ1.61, arXiv 2502.13179; card: ptq1-61; its code takes max |x|)
    weight    w^2, for comparison

Whole blocks are chosen for all outputs, so the mask costs one index per column and products run densely over each part. `outliers`:
that fraction of the coarse part, its largest weights, leaves it for fp16 before its ranges are placed; on the fine part they buy
nothing. Differs from Fast 2-bit: its sensitivity w^2 / [H^-1]_jj lets every other column react to an error, but those rounded
before cannot (it beats the range on 57 % of zoo:lm's linears, ours on 90 %); outliers are the largest weights, chosen before the
codes, not the largest errors after them, so that ranges shrink and GPTQ reacts; 4-bit groups may be larger than the blocks.
Costs 32 bits per input for the order of columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.layout import Layout, largest_divisor
from bitwright.linalg import inverse_factor
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import Json, Terms
from bitwright.terms.sparse import Sparse

DAMP = 0.01
KERNELS = 4  # columns are counted in multiples that the CPU's products take


@dataclass(frozen=True)
class MixedColumns:
    """The `share` of columns, in blocks of `block`, that go to `high`; `group` weights of one row (None: all) share its
    parameters."""

    share: float = 0.25
    by: Literal["hessian", "range", "input", "weight"] = "hessian"
    block: int = 16
    high: Grid = Integer(16)
    group: int | None = None
    outliers: float = 0.0
    inner: Rounding = GPTQ()

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.outliers < 1):
            raise BadRequest(f"Shares lie between 0 and 1, not {self.share} and {self.outliers}; mend the one that does not.")

    @property
    def needs(self) -> tuple[str, ...]:
        own = ("gram",) if self.by in ("hessian", "input") else ()
        return tuple(sorted({*own, *self.inner.needs, *self.high.needs}))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        shape = (W.shape[0], W.shape[1])
        fine = self.fine(self.score(W, known), coder.bands[0], shape)
        bands, count = self.bands(fine, coder.bands[0], shape), self.count(fine, shape)
        taken = (Sparse.of(W.masked_fill(fine.to(W.device), 0), count),) if count else ()
        rest = W - taken[0].decode() if taken else W
        return (*self.inner(rest, Coder.fit(rest, bands, coder.weight, coder.shared), known), *taken)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        fine = self.fine(torch.zeros(shape[1]), bands[0], shape)
        count = self.count(fine, shape)
        return (*self.inner.metas(shape, self.bands(fine, bands[0], shape)), *((Sparse.foretold(shape, count),) if count else ()))

    def count(self, fine: Bool[Tensor, "inp"], shape: tuple[int, int]) -> int:
        """How many outliers the coarse part loses."""
        return Sparse.count((shape[0], int((~fine).sum())), self.outliers)

    def score(self, W: Float[Tensor, "out inp"], known: Known) -> Float[Tensor, "inp"]:
        """Of every column, added up over its block by `fine`."""
        if self.by == "input":
            return known.gram.diagonal()
        if self.by == "weight":
            return W.square().sum(0)
        block = largest_divisor(W.shape[1], self.block)
        low, high = torch.aminmax(W.view(len(W), -1, block), dim=2)
        if self.by == "range":
            return (high - low).sum(0).repeat_interleave(block)
        return (high - low).square().sum(0).repeat_interleave(block) * pivots(known).to(W.dtype)

    def fine(self, score: Float[Tensor, "inp"], band: Band, shape: tuple[int, int]) -> Bool[Tensor, "inp"]:
        """Which columns are on the finer grid: as many blocks as make the share, or the nearest number that leaves both parts whole
        groups. Raises BadRequest where there is none."""
        block = largest_divisor(shape[1], self.block)
        order = score.view(-1, block).sum(1).argsort(descending=True, stable=True).cpu()
        step = KERNELS // gcd(block, KERNELS)
        for count in sorted(range(0, len(order) + 1, step), key=lambda n: abs(n * block - self.share * shape[1])):
            fine = torch.isin(torch.arange(len(order)), order[:count]).repeat_interleave(block)
            if not any(part.legal(shape) for part in self.bands(fine, band, shape)):
                return fine
        raise BadRequest(f"No share of blocks of {block} columns leaves whole groups on {shape[0]} x {shape[1]}; change the group.")

    def bands(self, fine: Bool[Tensor, "inp"], band: Band, shape: tuple[int, int]) -> list[Band]:
        """The coarse band and the fine one, where they have columns."""
        found = []
        for mask, grid, layout in ((~fine, band.grid, band.layout), (fine, self.high, Layout(1, self.group))):
            if columns := int(mask.sum()):
                layout = layout.nearest((shape[0], columns)) if mask is fine else layout
                found.append(Band(grid, layout, mask.nonzero()[:, 0] if columns < shape[1] else None))
        return found


def pivots(known: Known) -> Float[Tensor, "inp"]:
    """1 / U_jj^2: what a squared error in column j costs when all columns of smaller second moment still react to it."""
    H = known.gram
    order = H.diagonal().argsort(descending=True, stable=True)
    U = known.once(("inverse factor", DAMP, tuple(order.tolist())), lambda: inverse_factor(H[order][:, order], DAMP, known.note))
    return U.diagonal().square().reciprocal()[order.argsort()]
