"""Layouts: blocks tile the matrix, splitting and joining are inverse, the nearest legal block is the largest that fits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import BadRequest
from bitwright.layout import Layout

side = st.integers(1, 24)
block = st.none() | side


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_join_inverts_split_and_groups_are_blocks(rows, cols, down, across, whole_rows, whole_cols):
    layout = Layout(None if whole_rows else rows, None if whole_cols else cols)
    x = torch.arange(down * rows * across * cols).view(down * rows, across * cols)
    h, w = layout.block(tuple(x.shape))
    groups = layout.split(x)
    assert torch.equal(layout.join(groups, tuple(x.shape)), x)
    tiles = [x[i : i + h, j : j + w].flatten() for i in range(0, x.shape[0], h) for j in range(0, x.shape[1], w)]
    assert torch.equal(groups, torch.stack(tiles))
    assert layout.tiles(tuple(x.shape)) == (x.shape[0] // h, x.shape[1] // w)


@given(block, block, side, side)
def test_nearest_tiles_and_is_the_largest_no_larger(rows, cols, out, inp):
    layout, shape = Layout(rows, cols), (out, inp)
    found = layout.nearest(shape)
    assert found.fits(shape)
    for asked, got, length in zip(layout.block(shape), found.block(shape), shape):
        assert got <= asked and length % got == 0
        assert not any(length % larger == 0 for larger in range(got + 1, min(asked, length) + 1))
    if layout.fits(shape):
        assert found == layout
    else:
        with pytest.raises(ValueError, match="nearest"):
            layout.tiles(shape)


@pytest.mark.parametrize("block", [(0, 16), (1, 0), (-1, 16), (1, -16)])
def test_blocks_of_no_size_are_refused(block):
    with pytest.raises((BadRequest, ValueError), match=r"rows|cols|block|group|size"):  # at once, or where it meets a matrix
        Layout(*block).tiles((32, 32))
