"""Card fast-2bit: column blocks in 4 bits by their price to GPTQ, second-level scales of 4 bits, outliers in the 2-bit part."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitwright import recipes
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.grids.second_level import SecondLevel
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.recipe import Recipe
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.mixed_columns import MixedColumns
from bitwright.terms.base import Terms, decode, stored_bits


def rounded(recipe: Recipe, W: Tensor, H: Tensor) -> Terms:
    return recipe.rounding(W, Coder.fit(W, [Band(recipe.grid, recipe.layout)]), Known({"gram": H}))


def error(recipe: Recipe, W: Tensor, H: Tensor) -> float:
    return objective(W - decode(rounded(recipe, W, H)), H)


def bits(recipe: Recipe, shape: tuple[int, int]) -> float:
    return stored_bits(recipe.rounding.metas(shape, [Band(recipe.grid, recipe.layout)])) / (shape[0] * shape[1])


def uniform(group: int, scale: SecondLevel) -> Recipe:
    return Recipe(Integer(4, by=Mse(), scale=scale), Layout(1, group), GPTQ())


def test_blocks_are_whole_disjoint_and_as_many_as_the_share(problem):
    W, H = problem(24, 128)
    two, four = rounded(recipes.fast_2bit(), W, H)
    assert (two.grid.levels, four.grid.levels) == (4, 16) and len(four.columns) == 32
    assert torch.equal(torch.cat([two.columns, four.columns]).sort().values, torch.arange(128))
    assert (four.columns.view(2, 16).diff() == 1).all() and (four.columns[::16] % 16 == 0).all()


def test_its_bits_are_the_formula_of_the_card():
    """2 + (2 + 4) / 16 in three quarters, 4 + (16 + 4) / 64 in one; an fp16 per row; 32 per input for the order."""
    assert bits(recipes.fast_2bit(), (512, 1024)) == pytest.approx(
        0.75 * (2 + 6 / 16) + 0.25 * (4 + 20 / 64) + 16 / 1024 + 32 / 512
    )


def test_a_share_that_would_break_groups_becomes_the_nearest_that_does_not(problem):
    W, H = problem(24, 128)
    for cols, fine in ((4, 12), (8, 16), (32, 0)):  # a tenth is 13 columns; blocks of 4; the rest in groups of `cols`
        found = MixedColumns(0.1, block=4)(W, Coder.fit(W, [Band(Integer(4), Layout(1, cols))]), Known({"gram": H}))
        assert sum(term.codes.shape[1] for term in found[1:]) == fine
    with pytest.raises(BadRequest, match="between 0 and 1"):
        MixedColumns(1.5)


def test_outliers_leave_the_coarse_part_only_and_help(problem):
    W, H = problem(48, 128)
    plain, without = recipes.fast_2bit(), recipes.fast_2bit(outliers=0.02)
    two, _, taken = rounded(without, W, H)
    assert set(taken.columns.tolist()) <= set(two.columns.tolist()) and len(taken.values) == round(0.02 * 48 * 96)
    assert error(without, W, H) < error(plain, W, H)


def test_what_the_inputs_do_not_see_gets_no_bits(problem):
    """Two blocks of equal weights: the finer grid goes to the one whose inputs are loud."""
    W, _ = problem(24, 64)
    loud = torch.ones(64)
    loud[32:48] = 100.0
    fine = rounded(replace(recipes.fast_2bit(), rounding=MixedColumns(0.25)), W, torch.diag(loud))[1]
    assert fine.columns.tolist() == list(range(32, 48))


# --- zoo:lm: the card's checks 1 and 3 -----------------------------------------------------------------------------------------


@pytest.mark.acceptance
def test_by_its_price_it_beats_the_range_and_two_bits_in_smaller_groups(linears):
    """At no more bits: the mixed matrices have 3.02, groups of 8 under one fp16 per 32 weights have 3.25, groups of 16 with fp16
    scales have 3.125."""
    ours, by_range = recipes.fast_2bit(), recipes.fast_2bit(by="range")
    small, plain = uniform(8, SecondLevel(16, 4)), Recipe(Integer(4, by=Mse()), Layout(1, 16), GPTQ())
    told = []
    for W, H in linears:
        shape = (W.shape[0], W.shape[1])
        assert bits(ours, shape) == bits(by_range, shape) and bits(ours, shape) <= min(bits(small, shape), bits(plain, shape))
        told.append([error(recipe, W, H) for recipe in (ours, by_range, small, plain)])
    found = torch.tensor(told)
    assert ((found[:, :1] < found[:, 1:]).float().mean(0) >= 0.8).all()


@pytest.mark.acceptance
def test_four_bits_are_enough_for_a_scale(linears):
    ours = recipes.fast_2bit()
    wide = replace(ours, grid=Integer(4, by=Mse()))
    ratios = torch.tensor([error(ours, W, H) / error(wide, W, H) for W, H in linears])
    assert abs(ratios.log().mean().exp() - 1) < 0.05 and (ratios < 1.1).all()
