"""Card fp-diffusion, the weight grid: encoding by enumeration, and the splits that tails ask for."""

import pytest
import torch
from torch import Tensor

from bitwright import recipes
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.grids.tables import TABLES
from bitwright.recipes.fp_diffusion import SPLITS


def rows_lost(x: Tensor, grid: Grid) -> Tensor:
    p = grid.fit(x)
    return (grid.decode(grid.encode(x, p), p) - x).square().mean(1)


@pytest.mark.parametrize("table", [t for splits in SPLITS.values() for t in splits])
def test_the_nearest_of_all_points_is_found(table: str):
    """Also at powers of two, subnormals and both ends, for a range that is no power of two."""
    values = torch.tensor(TABLES[table])[:, 0].double()
    p = {"scale": torch.tensor([[0.7]])}
    scale = p["scale"].double()
    x = torch.cat([torch.randn(20000).double() * values.max() / 3, values, 2.0 ** torch.arange(-20, 6).double()])[None] * scale
    grid = Table(table, scale=Float("float32"))
    found = grid.decode(grid.encode(x, p), p).double()
    least = (x[0, :, None] - (values * scale[0])[None]).abs().amin(1)
    assert torch.allclose((found - x).abs()[0], least, atol=1e-6 * float(values.max()))
    assert len(set(values.tolist())) in (2 ** (8 if len(values) > 16 else 4) - n for n in (1, 3, 9))  # one zero, some NaN


def test_eight_bits_beat_int8_and_four_bits_where_tails_are_heavy():
    eight, heavy = recipes.fp_diffusion(8).grid, torch.distributions.Laplace(0.0, 1.0).sample((64, 1024))
    for x in (torch.randn(64, 1024), torch.randn(64, 1024) * torch.rand(64, 1024), heavy):
        even = rows_lost(x, Integer(256, True, by=Mse(2.0)))  # one that may also shift its range wins on one Gaussian row in ten
        assert (rows_lost(x, eight) <= even).float().mean() >= 0.95
    four = recipes.fp_diffusion(4).grid
    assert rows_lost(heavy, four).mean() <= 0.8 * rows_lost(heavy, Integer(16, by=Mse(2.0))).mean()
    bell = torch.randn(64, 1024)
    assert rows_lost(bell, four).mean() <= 1.06 * rows_lost(bell, Integer(16, by=Mse(2.0))).mean()


def test_widths_without_splits_are_refused():
    with pytest.raises(BadRequest, match="4 and 8 bits"):
        recipes.fp_diffusion(6)
