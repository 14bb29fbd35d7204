"""Card pv-tuning: the V step, its share and its decay."""

from dataclasses import replace
from math import ceil

import pytest
import torch
from matrices import INP, OUT, fitted, known, same

import bitwright
from bitwright import recipes
from bitwright.grids.integer import Integer
from bitwright.rounding.layerwise import Layerwise
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.pv_tuning import Pending, PvTuning
from bitwright.rounding.straight_through import Nudged
from bitwright.terms.base import decode
from bitwright.training.loop import Training
from bitwright.training.problem import Subject


def test_with_all_codes_free_and_no_decay_it_is_straight_through_training(problem):
    """Check 2: cap 1, d = 0, a scalar grid whose parameters stay, plain gradient steps: the same matrix after every step."""
    W, H = problem(OUT, INP)
    coder = fitted(2 * W, H, Integer(16))  # a range that nothing leaves: outside, straight-through gradients are cut
    start = Nearest()(W, coder, known(H))
    begun = Subject(decode(start), start, known(H))
    ours, plain = Pending(begun, PvTuning(share=1.0, book_rate=0.0)), Nudged(begun, 1.0, 0.0)
    changed = 0
    for _ in range(20):
        grads = []
        for variable, moved in ((ours, ours.R), (plain, plain.V)):
            E = variable.weight() - W
            grads.append(torch.autograd.grad(((E @ H) * E).sum(), moved)[0])
        assert torch.equal(*grads)
        with torch.no_grad():
            ours.R -= 0.02 * grads[0]
            plain.V -= 0.02 * grads[1]
            ours.settle(0.5)
        assert torch.equal(ours.weight(), plain.weight())
        changed = ours.changed
    assert changed > 20


def test_a_small_linearised_step_changes_no_code_and_a_capped_one_at_most_its_share(problem):
    W, H = problem(OUT, INP)
    coder = fitted(W, H, Integer(8))
    start = Nearest()(W, coder, known(H))
    how = Training(steps=5, optimizer="sgd", schedule="constant", keep="last")
    still = PvTuning(share=1.0, decay=1.0, rate=1e-9, book_rate=0.0, start=Nearest(), training=how)
    assert same(Layerwise(still)(W, coder, known(H), start), start)
    one = Training(steps=1, optimizer="lamb", schedule="constant", keep="last")
    eager = PvTuning(share=0.01, rate=10.0, book_rate=0.0, start=Nearest(), training=one)
    moved = Layerwise(eager)(W, coder, known(H), start)
    assert 0 < int((moved[0].codes != start[0].codes).sum()) <= ceil(0.01 * W.numel())


SHORT = (
    "KL with the cap, parameters alone, straight through: 0.609, 0.643, 0.606 from GPTQ's 2-bit codes, 0.281, 0.292, 0.271 from an "
    "additive codebook: 5 and 4 % below parameters alone, and straight-through is as good"
)


@pytest.mark.acceptance
@pytest.mark.xfail(strict=True, reason=SHORT)
@pytest.mark.parametrize("first", ["additive", "gptq"])
def test_a_subspace_beats_parameters_alone_and_straight_through(first: str) -> None:
    """Check 3, same 2-bit start, equal steps: KL with the cap 10 % below parameters alone, and at most straight-through's."""
    from bitwright.calibrate.text import text_windows
    from bitwright.evaluation import Baseline, evaluate

    base = Baseline.of(bitwright.load("zoo:lm"), text_windows("zoo:lm", "stdlib", 32, 512, "evaluation"), None, noise_floor=False)
    begun = recipes.aqlm() if first == "additive" else recipes.gptq(2, 64)
    data, kl = bitwright.calibration("zoo:lm", samples=128), {}
    how = Training(steps=300, optimizer="lamb", schedule="constant")
    for name, share in (("start", None), ("parameters", 0.0), ("cap", 0.01), ("straight-through", 1.0)):
        joint = PvTuning(share or 0.0, rate=3e-3, start=begun.alone, training=how)
        recipe = begun if share is None else replace(begun, rounding=joint)
        model, _ = bitwright.compress("zoo:lm", recipe, data, device="auto")
        kl[name] = evaluate(model, base).divergence.kl.value
    print(first, kl)
    assert kl["cap"] <= 0.9 * kl["parameters"] and kl["cap"] <= kl["straight-through"] and kl["cap"] < kl["start"]
