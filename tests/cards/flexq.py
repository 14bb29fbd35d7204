"""Card flexq: six bits for weights and inputs, the widths and groups that matter, the stored size."""

import pytest

import bitwright
from bitwright import recipes
from bitwright.activations.dynamic import Dynamic
from bitwright.evaluation import Baseline, evaluate
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.job import text_windows
from bitwright.recipe import Rule


@pytest.mark.acceptance
def test_six_bits_cost_one_percent_and_channels_or_six_bit_down_proj_cost_more():
    text = text_windows("zoo:lm", "stdlib", 24, 512, "evaluation")
    base = Baseline.of(bitwright.load("zoo:lm"), text, noise_floor=False)
    from dataclasses import replace

    told = recipes.flexq()
    six = Dynamic(Integer(63, True, scale=Float("float32")), 128)
    tried = {
        "flexq": told,
        "six in down_proj": replace(told, rules=()),
        "whole tokens": replace(told, activations=replace(six, group=None), rules=(Rule("re:.*down_proj", activations=Dynamic(
            Integer(255, True, scale=Float("float32")))),)),
    }  # fmt: skip
    found = {name: evaluate(bitwright.compress("zoo:lm", recipe)[0], base) for name, recipe in tried.items()}
    kl = {name: one.divergence.kl.value for name, one in found.items()}
    assert found["flexq"].perplexity.value.value < 1.01 * found["flexq"].perplexity.base.value
    assert kl["flexq"] < kl["six in down_proj"] and kl["flexq"] < kl["whole tokens"]


def test_stored_size_is_six_bits_and_a_scale_per_group():
    _, report = bitwright.compress("zoo:lm", recipes.flexq())
    assert report.bpw_linears == pytest.approx(6 + 16 / 128, rel=1e-3)


def test_only_down_proj_reads_eight_bits():
    small, _ = bitwright.compress("zoo:lm", recipes.flexq())
    levels = {n.rpartition(".")[2]: m.inputs.part.grid.levels for n, m in small.named_modules() if getattr(m, "inputs", None)}
    assert levels.pop("down_proj") == 255 and set(levels.values()) == {63}
