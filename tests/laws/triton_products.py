"""Products on a GPU are those of the decoded matrix, in sizes that fill no tile and no block: checked by Triton's interpreter on
the CPU, or on a GPU with TRITON_INTERPRET=0."""

import warnings

import pytest
import torch
from matrices import coded, differ, module

from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.kernels import dispatch
from bitwright.layout import Layout

triton = pytest.importorskip("triton")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"

GRIDS = [
    *(Integer(2**bits) for bits in range(1, 9)),
    Integer(16, symmetric=True),
    Table("nf4"),
    Table("e2m1"),
    Table("e4m3"),
    TritPlanes(),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("group, width", [(16, 48), (32, 160), (None, 80)])
def test_products_are_those_of_the_decoded_matrix(grid: Grid, group: int | None, width: int) -> None:
    """Few tokens from the codes, in one pass or in several; many through pieces of the dense matrix."""
    linear = module(coded(grid, Layout(1, group), (72, width))).to(DEVICE)
    for tokens in (3, 7, 20, 70) if group is None else (3, 20, 70):
        assert differ(linear, torch.randn(tokens, width).half().to(DEVICE), "triton") < 2e-3


def test_tokens_of_any_size_keep_their_precision() -> None:
    """A token's values are rounded per group: neither a loud feature elsewhere nor a silent token costs the others anything."""
    linear, x = module(coded(Integer(16), Layout(1, 32), (72, 64))).to(DEVICE), torch.randn(3, 64).half().to(DEVICE)
    x[0, 40] *= 1000
    x[1] = 0
    x[2] *= 1e-4
    assert differ(linear, x[[0, 2]], "triton") < 2e-3
    with torch.no_grad(), dispatch.only("triton"):
        assert torch.equal(linear(x)[1], torch.zeros(72, dtype=x.dtype, device=DEVICE))


def test_what_is_not_a_number_spoils_its_token_alone() -> None:
    linear, x = module(coded(Integer(16), Layout(1, 32), (72, 64))).to(DEVICE), torch.randn(3, 64).half().to(DEVICE)
    with torch.no_grad(), dispatch.only("triton"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter computes with numpy
        clean = linear(x)
        x[1, 5] = float("nan")
        x[2, 40] = float("inf")
        y = linear(x)
    assert torch.equal(y[0], clean[0]) and y[1].isnan().all() and not y[2].isfinite().any()


def test_groups_that_cut_through_words_are_declined() -> None:
    linear, x = module(coded(Integer(16), Layout(1, 24), (8, 48))).to(DEVICE), torch.randn(1, 48).half().to(DEVICE)
    with pytest.warns(UserWarning, match="groups of 24 columns"), pytest.raises(NotImplementedError):
        differ(linear, x, "triton")
