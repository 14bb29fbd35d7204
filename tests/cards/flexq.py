"""Card flexq: six bits for weights and inputs, the widths and groups that matter, the stored size."""

from dataclasses import replace
from typing import Any

import pytest

import bitwright
from bitwright import recipes
from bitwright.activations.dynamic import Dynamic
from bitwright.calibrate.text import text_windows
from bitwright.evaluation import Baseline, evaluate
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.recipe import Rule


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    text = text_windows("zoo:lm", "stdlib", 24, 512, "evaluation")
    base = Baseline.of(bitwright.load("zoo:lm"), text, noise_floor=False)
    told, (six, eight) = recipes.flexq(), (Dynamic(Integer(n, True, scale=Float("float32")), 128) for n in (63, 255))
    tried = {
        "flexq": told,
        "six in down_proj": replace(told, rules=()),
        "whole tokens": replace(
            told, activations=replace(six, group=None), rules=(Rule("re:.*down_proj", activations=replace(eight, group=None)),)
        ),
    }
    return {name: evaluate(bitwright.compress("zoo:lm", recipe)[0], base) for name, recipe in tried.items()}


@pytest.mark.acceptance
@pytest.mark.xfail(reason="1.8 % on zoo:lm: its inputs have larger crests than the card's models", strict=True)
def test_six_bits_cost_one_percent_of_perplexity(judged):
    found = judged["flexq"].perplexity
    assert found.other.value < 1.01 * found.base.value


@pytest.mark.acceptance
def test_groups_and_eight_bits_in_down_proj_are_worth_it(judged):
    kl = {name: one.divergence.kl.value for name, one in judged.items()}
    assert kl["flexq"] < kl["six in down_proj"] and kl["flexq"] < kl["whole tokens"]


def test_stored_size_is_six_bits_and_a_scale_per_group():
    _, report = bitwright.compress("zoo:lm", recipes.flexq())
    assert report.bpw_linears == pytest.approx(6 + 16 / 128, rel=1e-3)


def test_only_down_proj_reads_eight_bits():
    small, _ = bitwright.compress("zoo:lm", recipes.flexq())
    levels = {n.rpartition(".")[2]: m.inputs.part.grid.levels for n, m in small.named_modules() if getattr(m, "inputs", None)}
    assert levels.pop("down_proj") == 255 and set(levels.values()) == {63}
