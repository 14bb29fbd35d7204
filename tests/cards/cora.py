"""CoRa (card: cora): acceptance checks. Those on images are in tests/vision_cards.py."""

import pytest
import torch
from matrices import INP, OUT, fitted, known

import bitwright
from bitwright import recipes
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.grids.sigma import Sigma
from bitwright.layout import Layout
from bitwright.rounding.cora import SoftRank, cut
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import decode
from bitwright.training.problem import Subject


def ranked(problem, seed: int = 0) -> SoftRank:
    W, H = problem(OUT, INP, seed=seed)
    start = Nearest()(W, fitted(W, H, Integer(4)), known(H))
    return SoftRank(Subject(W, start, known(H)), 0.01, 0.9)


def test_a_full_rank_gives_the_weights_back_and_the_filter_is_the_one_of_the_card(problem):
    """Check 1."""
    rank = ranked(problem)
    torch.testing.assert_close(rank.stored + rank.P @ rank.Q, rank.subject.W, rtol=0, atol=1e-5)
    whole = decode(rank.with_rank(rank.full))
    assert (whole - rank.subject.W).norm() <= 0.02 * (rank.stored - rank.subject.W).norm()  # factors of 8 bits
    with torch.no_grad():
        rank.rho.fill_(1 / rank.full)
        torch.testing.assert_close(rank.filter()[:3], torch.tensor([1.0, 0.7071, 0.0624]), rtol=1e-2, atol=1e-3)
        low = rank.filter()
        rank.rho.fill_(0.5)
        assert (rank.filter() >= low).all()


def test_ranks_meet_the_budget_and_the_cheapest_directions_go_first(problem):
    """Check 3."""
    found = [ranked(problem, seed) for seed in range(3)]
    with torch.no_grad():
        found[1].S.mul_(100)
    for most in (0.0, 100.0, 500.0, 1e6):
        ranks = cut(found, most, False)
        numbers = sum(r * v.price for r, v in zip(ranks, found))
        assert numbers <= most and (numbers > most - found[0].price or ranks == [v.rank for v in found])
    assert cut(found, 300.0, False)[1] == max(cut(found, 300.0, False))


def test_three_sigma_cuts_only_what_lies_beyond():
    x = torch.cat([torch.randn(1, 999) * 0.1, torch.tensor([[50.0]])], 1)
    grid = Integer(16, by=Sigma())
    wide, cut_off = (float(Coder.fit(x, [Band(g, Layout(None, None))]).params[0]["scale"]) for g in (Integer(16), grid))
    assert cut_off < 0.2 * wide
    calm = x[:, :999].clamp(-0.25, 0.25)
    same = [Coder.fit(calm, [Band(g, Layout(None, None))]).params[0]["scale"] for g in (Integer(16), grid)]
    assert torch.equal(*same)


@pytest.mark.acceptance
def test_searched_ranks_beat_uniform_ones_on_a_language_model() -> None:
    """Check 4: 3 bits, at equal bytes."""
    from bitwright.calibrate.text import text_windows
    from bitwright.evaluation import Baseline, evaluate

    base = Baseline.of(bitwright.load("zoo:lm"), text_windows("zoo:lm", "stdlib", 32, 512, "evaluation"), None, noise_floor=False)
    found = {}
    for uniform in (False, True):
        recipe = recipes.cora(3, budget=0.05, per_row=True, uniform=uniform)
        model, report = bitwright.compress("zoo:lm", recipe, bitwright.calibration("zoo:lm", samples=64), device="auto")
        found[uniform] = evaluate(model, base).divergence.kl.value, report.bytes
    print(found)
    assert abs(found[False][1] / found[True][1] - 1) < 0.02 and found[False][0] < found[True][0]
