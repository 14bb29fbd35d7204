"""Triton's kernels under its interpreter: the same codes as the reference, the same products as the decoded matrix."""

import pytest
import torch
from matrices import bands_of, coded, differ, known, loss, module, same

from bitwright.coder import Coder
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase

pytest.importorskip("triton")

SCALAR = [Integer(4), Integer(9, True), Table("nf4"), Table("ternary"), TritPlanes()]


@pytest.mark.parametrize("rounding", [GPTQ(), GPTQ("natural", "dynamic"), QuantEase(iters=3)], ids=str)
@pytest.mark.parametrize("grid", SCALAR, ids=str)
@pytest.mark.parametrize("kind", ["one", "two"])
def test_column_loops_are_the_reference(rounding: Rounding, grid: Grid, kind: str, problem) -> None:
    for dtype in (torch.float64, torch.float32):
        W, H = problem(22, 32, dtype=dtype)
        coder = Coder.fit(W, bands_of(kind, grid))
        found = []
        for name in ("reference", "triton"):
            with dispatch.only(name):
                found.append(rounding(W, coder, known(H)))
        if dtype == torch.float64:
            assert same(*found)
        assert loss(W, found[1], H) == pytest.approx(loss(W, found[0], H), rel=1e-6 if dtype == torch.float64 else 1e-2)


def test_vectors_are_left_to_the_reference(problem) -> None:
    W, H = problem(8, 32)
    with dispatch.only("triton"), pytest.raises(NotImplementedError, match="triton"):
        GPTQ()(W, Coder.fit(W, bands_of("one", Table("roots4"))), known(H))


PRODUCTS = [
    (Integer(2), 32),
    (Integer(4), 32),
    (Integer(8), 64),
    (Integer(16), 32),
    (Integer(256), 80),
    (Table("nf4"), 32),
    (TritPlanes(), 80),
]


@pytest.mark.parametrize("grid, group", PRODUCTS, ids=str)
def test_products_are_those_of_the_decoded_matrix(grid: Grid, group: int) -> None:
    """Few tokens from the codes, many through pieces of the dense matrix; sizes that fill no tile and no block."""
    linear = module(coded(grid, Layout(1, group if group != 80 else None), (72, 320 if group != 80 else 80)))
    for tokens in (1, 12, 20):
        assert differ(linear, torch.randn(tokens, linear.in_features).half(), "triton") < 2e-3
