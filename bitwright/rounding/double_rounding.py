"""Double rounding with stored turns: one artefact, every width of it the solution of a rounding problem (card: double-rounding).

    first      codes of the nested grid's full width, as ever
    turns      for each lower width l:   W_l = floor(s_h W_h / s_l) + t,   t in {0, 1}^(out x inp) by  min tr(E_l H E_l^T)

so the second rounding goes up or down as a rounding of ours chooses, on a grid of two points per weight: no new loop is needed.
Differs from the paper, whose second rounding is to nearest and whose model is trained for that; without training, nearest doubles
the error of GPTQ at every width. Bits alone cannot be dropped from a GPTQ solution either: its codes are not near the weights, so
the children of a good 2-bit code do not hold the good 3-bit code (error times 3 at 3 bits, 12 at 4). Where GPTQ may choose freely
it leaves the two neighbours of a weight seldom: confined to them its error grows by 2 to 5 %.
Costs one bit per weight and lower width in the file, nothing in a model that is loaded at its width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.grids.nested import Nested
from bitwright.layout import Layout
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import Json, Terms
from bitwright.terms.coded import Coded
from bitwright.terms.turns import Turns, turns_meta

EACH = Layout(1, 1)


@dataclass(frozen=True)
class DoubleRounding:
    """`first` rounds to the full width, `turns` chooses between neighbours at the others; on grids that are not nested only
    `first` is done, and the second rounding of codes in bands of several kinds is to nearest."""

    first: Rounding = GPTQ()
    turns: Rounding = GPTQ()

    def __post_init__(self) -> None:
        if getattr(self.turns, "groups", "static") != "static":
            raise BadRequest("Turns are chosen between two given points, which dynamic groups would move; choose static ones.")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(sorted({*self.first.needs, *self.turns.needs}))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        terms = self.first(W, coder, known, start)
        widths = lower(coder.bands)
        coded = [term for term in terms if isinstance(term, Coded)]
        planes = {bits: self.plane(W, coded, bits, known) for bits in widths}
        return (*terms, *((Turns(planes),) if planes else ()))

    def plane(self, W: Float[Tensor, "out inp"], coded: Sequence[Coded], bits: int, known: Known) -> Tensor:
        """The turns of one width: codes on two points per weight."""
        windows = [window(term, bits) for term in coded]
        coder = Coder((W.shape[0], W.shape[1]), tuple(Band(Integer(2), EACH, t.columns) for t in coded), tuple(windows))
        plane = torch.zeros(W.shape, dtype=torch.uint8, device=W.device)
        for term in self.turns(W, coder, known):
            assert isinstance(term, Coded)
            plane[:, slice(None) if term.columns is None else term.columns.long()] = term.codes
        return plane

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        found, widths = self.first.metas(shape, bands), lower(bands)
        return (*found, *((turns_meta(shape, list(widths)),) if widths else ()))


def lower(bands: Sequence[Band]) -> tuple[int, ...]:
    """The widths below the stored one; none where bands are not of one nested kind."""
    kinds = {band.grid.serves if isinstance(band.grid, Nested) else () for band in bands}
    return kinds.pop()[1:] if len(kinds) == 1 else ()


def window(term: Coded, bits: int) -> dict[str, Float[Tensor, "w 1"]]:
    """Scale and zero, for every weight, of the two points of a width around the number that a stored code stands for."""
    grid = term.grid
    assert isinstance(grid, Nested)
    shape, codes = (term.shape[0], term.codes.shape[1]), term.layout.split(term.codes)
    scale, zero = grid.at(bits).affine(grid.params(term.params, bits))
    low = grid.below(codes, term.params, bits)
    each = {"scale": scale.expand(low.shape), "zero": zero - low}
    return {name: term.layout.join(leaf, shape).reshape(-1, 1) for name, leaf in each.items()}
