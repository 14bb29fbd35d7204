"""Products on a GPU, under Triton's interpreter: those of the decoded matrix, in sizes that fill no tile and no block."""

import pytest
import torch
from matrices import coded, differ, module

from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.layout import Layout

pytest.importorskip("triton")

GRIDS = [Integer(2), Integer(4), Integer(8), Integer(16), Integer(256), Table("nf4"), TritPlanes()]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("group, width", [(32, 160), (None, 80)])
def test_products_are_those_of_the_decoded_matrix(grid: Grid, group: int | None, width: int) -> None:
    """Few tokens from the codes, many through pieces of the dense matrix."""
    linear = module(coded(grid, Layout(1, group), (72, width)))
    for tokens in (1, 12, 20):
        assert differ(linear, torch.randn(tokens, width).half(), "triton") < 2e-3


def test_groups_that_cut_through_words_are_declined() -> None:
    linear, x = module(coded(Integer(16), Layout(1, 24), (8, 48))), torch.randn(1, 48).half()
    with pytest.warns(UserWarning, match="groups of 24 columns"), pytest.raises(NotImplementedError):
        differ(linear, x, "triton")
