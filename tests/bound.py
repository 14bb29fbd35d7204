"""A bound on the KL (`--kl`): it holds on documents that neither the statistics nor the search have seen, and is not far away."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright import recipes
from bitwright.allocation.integer_program import IntegerProgram
from bitwright.allotting import ROWS, parted
from bitwright.job import Job


def test_what_a_bound_is_checked_on_was_not_fitted(tiny_llama: Any, tokens: Any) -> None:
    text = tokens(rows=2 * ROWS)
    fitted, held = parted(Job.of(tiny_llama(num_hidden_layers=1), recipes.gptq(group=16), text))
    assert fitted.data is not None and len(held.ids) == ROWS
    seen = {tuple(row) for row in fitted.data.ids.tolist()}
    assert len(seen) == len(fitted.data.ids) == ROWS and not seen & {tuple(row) for row in held.ids.tolist()}


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bound")


@pytest.mark.acceptance
@pytest.mark.parametrize("bound", [0.05, 0.2])
def test_a_bound_holds_on_text_that_was_not_used(bound: float, stats: Path) -> None:
    """The evaluation half shares no document with the calibration half. Not far away either: the bound is spent, but for the room
    that the search leaves for the spread of its own windows."""
    from bitwright.calibrate.text import text_windows
    from bitwright.evaluation import Baseline, evaluate

    text, judge = bitwright.calibration("zoo:lm"), text_windows("zoo:lm", "stdlib", 96, 512, "evaluation")
    assert not set(text.titles) & set(judge.titles)
    recipe = replace(recipes.gptq(group=64), allocation=IntegerProgram(), bound=bound)
    model, report = bitwright.compress("zoo:lm", recipe, text, stats=stats)
    kl = evaluate(model, Baseline.of(bitwright.load("zoo:lm"), judge, noise_floor=False)).divergence.kl
    assert 0.7 * bound <= kl.value <= bound, f"{kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}] at {report.bpw_linears:.3f} bits"
