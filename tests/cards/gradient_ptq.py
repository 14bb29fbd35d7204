"""Gradient-based PTQ (card: gradient-ptq): the harness on blocks of zoo:lm, the recipe and its axes, bits by importance."""

from dataclasses import replace

import pytest
import torch
from contest import contest
from matrices import INP, OUT, fitted, known

import bitwright
from bitwright import recipes
from bitwright.errors import BadRequest
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.adaround import AdaRound, Sigmoid
from bitwright.rounding.flexround import FlexRound
from bitwright.rounding.layerwise import Layerwise
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.soft_choice import SoftChoice
from bitwright.rounding.straight_through import StraightThrough
from bitwright.training.loop import Training
from bitwright.training.problem import Subject
from bitwright.training.ranges import Ranges


def test_the_soft_weight_is_the_weight_itself_at_first(problem):
    """h is the position between the neighbours, so nothing is lost before the first step; outside the range the end is."""
    W, H = problem(OUT, INP)
    start = Nearest()(W, fitted(W, H, Integer(8)), known(H))
    choice = SoftChoice(Subject(W, start, known(H)), Sigmoid(1.0), 1e-2)
    low, high = Ranges(fitted(W, H, Integer(8)), W).ends
    torch.testing.assert_close(choice.weight().detach(), W.clamp(low, high), rtol=0, atol=2e-3 * float(W.abs().max()))


def test_it_commits(problem):
    W, H = problem(OUT, INP)
    k = known(H)
    Layerwise(AdaRound(training=Training(steps=400, schedule="constant")))(W, fitted(W, H, Integer(8)), k)
    told = next(note for note in k.notes if "undecided" in note)
    assert float(told.split("%")[0]) < 5


# --- the recipe --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axis",
    [
        {"variable": "divisor"},
        {"variable": "weight"},
        {"optimizer": "adamax"},
        {"inputs": "mixed"},
        {"loss": "cosine"},
        {"scope": "model"},
        {"grid": "nf4"},
    ],
    ids=lambda axis: "-".join(axis.values()),
)
def test_every_axis_makes_another_recipe_that_runs(axis, tiny_llama, tokens):
    found, plain = recipes.gradient_ptq(steps=6, group=32, **axis), recipes.gradient_ptq(steps=6, group=32)
    assert found != plain and Recipe.from_dict(found.to_dict()) == found
    _, report = bitwright.compress(tiny_llama(num_hidden_layers=1), found, tokens(), batch=2)
    assert all("6 steps" in " ".join(row.notes) for row in report.rows)


def test_what_does_not_exist_is_refused_in_words():
    for wrong, words in (({"variable": "magic"}, "sigmoid, divisor"), ({"grid": "nf4", "budget": 4.0}, "four bits")):
        with pytest.raises(BadRequest, match=words):
            recipes.gradient_ptq(**wrong)


def test_bits_go_where_gradients_say_they_matter(tiny_llama, tokens, tmp_path):
    """Under one budget: the matrices differ in bits, the sum is met, every one of them is trained on the grid that it was given,
    and the forecast is below that of equal bits for all."""
    recipe = recipes.gradient_ptq(budget=6.0, steps=6, group=32)
    model, report = bitwright.compress(tiny_llama(), recipe, tokens(), batch=2, out=tmp_path / "m")
    assert report.bpw_linears <= 6.0
    assert len({round(row.bpw, 1) for row in report.rows}) > 1
    assert all("6 steps" in " ".join(row.notes) for row in report.rows)
    levels = {t.grid.levels for m in model.modules() if hasattr(m, "decoded") for t in m.decoded()}
    assert levels <= {8, 16, 256} and len(levels) > 1


@pytest.mark.acceptance
@pytest.mark.xfail(
    strict=True, reason="within the bytes of four bits everywhere, gradients deal out four bits everywhere: one model, KL 0.0335"
)
def test_importance_beats_equal_bits_at_equal_size() -> None:
    """The rule of the paper by our score: 3, 4 and 8 bits dealt out by gradients against 4 for all, in no more stored bits."""
    from bitwright.calibrate.text import text_windows
    from bitwright.evaluation import evaluate

    data, windows = bitwright.calibration("zoo:lm", samples=64), text_windows("zoo:lm", "stdlib", 32, 512, "evaluation")
    found = {}
    even_model, even_report = bitwright.compress("zoo:lm", recipes.gradient_ptq(4), data, device="auto")
    dealt = recipes.gradient_ptq(budget=even_report.bpw_linears)
    dealt_model, dealt_report = bitwright.compress("zoo:lm", dealt, data, device="auto")
    for name, model in (("even", even_model), ("dealt", dealt_model)):
        told = evaluate(model, bitwright.load("zoo:lm"), windows).divergence
        assert told is not None
        found[name] = told.kl.value
    print(found, even_report.bpw_linears, dealt_report.bpw_linears)
    assert dealt_report.bpw_linears <= even_report.bpw_linears
    assert found["dealt"] < found["even"]


@pytest.mark.acceptance
def test_the_harness_on_a_small_llama() -> None:
    """Check 1 (block error <= nearest rounding everywhere at 4 bits per channel), and check 3: changing variable or optimizer
    moves the error of a block by more than changing the calibration subset, on 70 % of the blocks."""
    how = Training(steps=600, schedule="constant")
    base = AdaRound(training=how)
    methods = {
        "base": base,
        "seed": AdaRound(training=replace(how, seed=1)),
        "sgd-like": AdaRound(training=replace(how, optimizer="sign"), rate=2e-3),
        "divisor": FlexRound(1e-3, training=how),
        "weights": StraightThrough(1e-2, 1e-2, training=how),
    }
    grid = Integer(16, by=Mse())
    one = contest(methods, grid, Layout(1, None), samples=64)
    print({name: [round(b / a, 3) for a, b in zip(one.errors["start"], errors)] for name, errors in one.errors.items()})
    assert all(b <= a for a, b in zip(one.errors["start"], one.errors["base"]))
    moved = [
        max(abs(o / b - 1) for o in others)
        for b, *others in zip(one.errors["base"], one.errors["divisor"], one.errors["weights"], one.errors["sgd-like"])
    ]
    drawn = [abs(s / b - 1) for b, s in zip(one.errors["base"], one.errors["seed"])]
    assert sum(m > d for m, d in zip(moved, drawn)) >= 0.7 * len(moved)
