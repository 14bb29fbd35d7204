"""Card ptq1-61, its allocation: one bit around the mean of a row, four for the inputs that are loudest."""

import pytest
import torch
from torch import Tensor

from bitwright import recipes
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.linalg import objective
from bitwright.terms.base import decode, stored_bits

RECIPE = recipes.ptq1_61()


def error(W: Tensor, H: Tensor, score: Tensor) -> float:
    """The paper's two grids, under any mask."""
    shape, band, mixed = (W.shape[0], W.shape[1]), Band(RECIPE.grid, RECIPE.layout), RECIPE.rounding
    bands = mixed.bands(mixed.fine(score, band, shape), band, shape)
    return objective(W - decode(mixed.inner(W, Coder.fit(W, bands), Known())), H)


def test_the_loudest_fifth_keeps_four_bits_and_the_rest_two_points_around_its_mean(problem):
    W, H = problem(24, 80)
    one, four = RECIPE.rounding(W, Coder.fit(W, [Band(RECIPE.grid, RECIPE.layout)]), Known({"gram": H}))
    assert set(four.columns.tolist()) == set(H.diagonal().topk(16).indices.tolist())
    rest = W[:, one.columns]
    mean = rest.mean(1, keepdim=True)
    told = mean + (rest - mean).abs().mean(1, keepdim=True) * torch.where(rest < mean, -1.0, 1.0)
    decoded = one.decode()[:, one.columns]
    assert all(len(row.unique()) == 2 for row in decoded)
    assert (decoded - rest).square().sum() <= (told - rest).square().sum() * (1 + 1e-3)  # the best two points, stored in fp16


def test_its_bits_are_those_of_the_paper_and_what_it_does_not_count():
    metas = RECIPE.rounding.metas((4096, 4096), [Band(RECIPE.grid, RECIPE.layout)])
    share = 820 / 4096  # a fifth in multiples of 4
    wanted = 4 * share + (1 - share) + (16 + 4 + 16 + 16 + 8) / 4096 + 32 / 4096  # 8: rows begin on bytes
    assert stored_bits(metas) / 4096**2 == pytest.approx(wanted, rel=1e-6) and wanted < 1.63


def test_unknown_roundings_are_refused():
    with pytest.raises(BadRequest, match="nearest, gptq"):
        recipes.ptq1_61(rounding="magic")


def test_a_mask_by_inputs_beats_masks_by_weights_and_by_chance(problem):
    """Check 2 of the card, on problems with a few loud inputs."""
    wins = []
    for seed in range(10):
        W, H = problem(32, 80, seed, loud=8)
        ours, *others = (error(W, H, score) for score in (H.diagonal(), W.square().sum(0), torch.rand(80)))
        wins.append([ours < other for other in others])
    assert (torch.tensor(wins).float().mean(0) >= 0.9).all()


@pytest.mark.acceptance
def test_on_the_linears_a_mask_by_inputs_beats_masks_by_weights_and_by_chance(linears):
    wins = []
    for W, H in linears:
        ours, *others = (error(W, H, score) for score in (H.diagonal(), W.square().sum(0), torch.rand(W.shape[1])))
        wins.append([ours < other for other in others])
    assert (torch.tensor(wins).float().mean(0) >= 0.9).all()
