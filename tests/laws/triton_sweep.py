"""Column loops for GPUs are the reference too: checked by Triton's interpreter on the CPU, or on a GPU with TRITON_INTERPRET=0."""

import pytest
import torch
from matrices import INP, OUT, bands_of, fitted, known, loss, same
from torch import Tensor

from bitwright.coder import Coder
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.offset import Offset
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase

pytest.importorskip("triton")
from bitwright.kernels.triton import sweep

DEVICE = "cpu" if sweep.INTERPRETED else "cuda"
GRIDS = [Integer(4), Integer(9, True), Offset(4), Table("nf4"), Table("ternary"), TritPlanes()]


def agrees(rounding: Rounding, W: Tensor, H: Tensor, coder: Coder) -> bool:
    """Whether both implementations give the same terms (fp64) or terms as good (fp32)."""
    found = []
    for name in ("reference", "triton"):
        with dispatch.only(name):
            found.append(rounding(W, coder, known(H)))
    ours, theirs = (loss(W, terms, H) for terms in found)
    return same(*found) if W.dtype == torch.float64 else ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["one", "two"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_loops_for_gpus_are_the_reference(grid: Grid, kind: str, dtype: torch.dtype, problem):
    W, H = (x.to(DEVICE) for x in problem(OUT, INP, dtype=dtype))
    coder = Coder.fit(W, bands_of(kind, grid))
    assert agrees(GPTQ(), W, H, coder)
    assert agrees(QuantEase(iters=3), W, H, coder)


@pytest.mark.parametrize("rounding", [GPTQ(block=12), GPTQ("natural", "dynamic", block=16), QuantEase(iters=3)], ids=str)
def test_blocks_and_sizes_need_not_fit_each_other(rounding: Rounding, problem, monkeypatch):
    """21 rows in programs of 16; 40 columns in blocks of 12 or 16; groups of 3 rows and 8 columns."""
    monkeypatch.setattr(sweep, "BLOCK", 12)
    monkeypatch.setattr(sweep, "WIDE", 30)
    W, H = (x.to(DEVICE) for x in problem(21, 40, dtype=torch.float64))
    assert agrees(rounding, W, H, fitted(W, H, TritPlanes(), Layout(3, 8)))


def test_inputs_that_never_fire_move_nothing(problem):
    W, H = (x.to(DEVICE) for x in problem(5, 16, dtype=torch.float64))
    live = (torch.arange(16, device=DEVICE) % 3 > 0).double()
    H = live[:, None] * H * live
    for rounding in (GPTQ(), QuantEase(iters=2)):
        assert agrees(rounding, W, H, fitted(W, H, Integer(4)))
    loud = H.diagonal().argmax()
    H[loud, loud] = 0  # as if a second moment underflowed and its products did not
    assert agrees(QuantEase(iters=2), W, H, fitted(W, H, Integer(4)))


def test_ties_fall_as_in_the_reference():
    """Numbers on the borders between points, far outside, and at zero; no second moments that could move them."""
    x = torch.cat([torch.arange(-8, 9) / 4, torch.tensor([1e30, -1e30, 3e-38, 1e6, -1e6, 0.3, -0.3])])
    for dtype in (torch.float32, torch.float64):
        W = x.to(DEVICE, dtype).repeat(3, 1)
        eye = torch.eye(len(x), dtype=dtype, device=DEVICE)
        for grid in GRIDS:
            coder = fitted(W.clamp(-2, 2), eye, grid, Layout(1, None))
            cols, found = torch.cat(coder.steps()).to(DEVICE), []
            for name in ("reference", "triton"):
                with dispatch.only(name):
                    found.append(dispatch.gptq_block(W, eye, coder, cols, [1] * len(cols))[0])
            assert same(*map(coder.terms, found))


def test_vectors_are_declined(problem):
    W, H = (x.to(DEVICE) for x in problem(OUT, INP))
    for rounding in (GPTQ(), QuantEase(iters=2)):
        with dispatch.only("triton"), pytest.raises(NotImplementedError, match="triton"):
            rounding(W, fitted(W, H, Table("roots4")), known(H))


def test_blocks_too_wide_for_registers_are_declined(problem):
    W, H = (x.to(DEVICE) for x in problem(2, sweep.WIDEST + 16))
    with dispatch.only("triton"), pytest.raises(NotImplementedError, match="triton"):
        GPTQ(block=1024)(W, fitted(W, H, Integer(4)), known(H))


def test_a_coder_is_placed_once_and_let_go(problem):
    W, H = (x.to(DEVICE) for x in problem(OUT, INP))
    coder = fitted(W, H, Integer(4))
    before = len(sweep.PLACED)
    first = sweep.placed(coder, W.device)
    assert sweep.placed(coder, W.device)[0] is first[0]
    assert torch.equal(torch.cat(coder.steps()), torch.arange(INP)) and first[2] is None
    other = Coder.fit(W, bands_of("two", Integer(4)))
    assert torch.equal(sweep.placed(other, W.device)[2].cpu(), torch.cat(other.steps()))
    del other
    del coder
    assert len(sweep.PLACED) == before
