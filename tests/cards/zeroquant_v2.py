"""Card zeroquant-v2: Eckart-Young in both norms, stored factors, the ends of the rank, what LoRC buys and what it costs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes, zoo
from bitwright import sensitivity as study
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.corrections.lorc import Lorc
from bitwright.errors import BadRequest
from bitwright.evaluation import Baseline, evaluate
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.linalg import damped, objective, root
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest
from bitwright.sensitivity import quality, quantized
from bitwright.terms.base import decode, stored_bits

METHODS = [Nearest(), GPTQ()]


def known(H: Tensor) -> Known:
    return Known({"gram": H})


def left(E: Tensor, H: Tensor, lorc: Lorc) -> Tensor:
    """The error that remains."""
    return E - decode(lorc(E, known(H)))


def loss(E: Tensor, H: Tensor) -> float:
    return objective(E.double(), H.double())


def errors(W: Tensor, H: Tensor, method: Nearest | GPTQ, layout: Layout = Layout(1, 32)) -> Tensor:
    """What 3 bits leave of a matrix."""
    return W - decode(method(W, Coder.fit(W, [Band(Integer(8), layout)]), known(H)))


# --- 1. Eckart-Young ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)], ids=str)
def test_what_is_left_is_the_tail_of_the_singular_values(shape: tuple[int, int], problem):
    W, H = problem(*shape)
    E = errors(W, H, Nearest(), Layout(1, None))
    values, L = torch.linalg.svdvals(E.double()), root(H.double())
    whitened = torch.linalg.svdvals(E.double() @ L)
    for m in range(1, min(shape)):
        plain = left(E, H, Lorc(m, whiten=False, dtype="float32")).double().norm()
        assert plain == pytest.approx(float(values[m:].norm()), abs=1e-5 * float(values.norm()))
        weighed = objective(left(E, H, Lorc(m, dtype="float32")).double(), damped(H.double(), 1e-6)) ** 0.5
        assert weighed == pytest.approx(float(whitened[m:].norm()), abs=1e-5 * float(whitened.norm()))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whitening_is_never_worse_and_helps_nearest_most(method, problem):
    gains = []
    for seed in range(12):
        W, H = problem(48, 96, seed, spectrum=(0.5, 1.0, 1.5, 2.0)[seed % 4])
        E = errors(W, H, method)
        whole, plain, white = loss(E, H), loss(left(E, H, Lorc(8, whiten=False)), H), loss(left(E, H, Lorc(8)), H)
        assert white <= plain < whole
        gains.append(white / plain)
    assert (sum(gains) / len(gains) < 0.7) == (method == Nearest())


# --- 3. after GPTQ, and in eight bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("whiten", [True, False])
def test_factors_of_eight_bits_are_as_good_as_of_sixteen(method, whiten: bool, problem):
    for seed in range(8):
        W, H = problem(48, 96, seed, spectrum=(0.5, 1.0, 1.5, 2.0)[seed % 4])
        E = errors(W, H, method)
        sixteen, eight = (loss(left(E, H, Lorc(8, whiten, dtype)), H) for dtype in ("float16", "int8"))
        assert eight == pytest.approx(sixteen, rel=0.01)


def test_the_rank_is_paid_in_bits_as_the_card_counts():
    """16 m (out + in) / (out in): 0.67 bit per weight at 384 x 384 and m = 8, half of it in eight bits."""
    E = torch.randn(384, 384)
    assert stored_bits(Lorc(8, whiten=False)(E, Known())) / E.numel() == 2 / 3
    eight = stored_bits(Lorc(8, whiten=False, dtype="int8")(E, Known()))
    assert eight - 8 * 32 == E.numel() / 3  # and a scale for each of the 8 directions


# --- 4. the ends of the rank -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("shape", [(24, 64), (64, 24)], ids=str)
def test_the_full_rank_reproduces_the_matrix_and_rank_zero_is_nothing(whiten: bool, shape: tuple[int, int], problem):
    W, H = problem(*shape, loud=0)
    terms = Nearest()(W, Coder.fit(W, [Band(Integer(4), Layout(1, None))]), Known())
    E = W - decode(terms)
    for rank in (min(shape), 1000):
        whole = decode((*terms, *Lorc(rank, whiten, "float32")(E, known(H))))
        assert (whole - W).abs().max() <= 1e-5 * W.abs().max() < (decode(terms) - W).abs().max()
    nothing = Lorc(0, whiten)
    assert nothing(E, known(H)) == () and nothing.metas(shape) == ()


# --- the study ---------------------------------------------------------------------------------------------------------------


def test_classes_are_the_studys():
    assert [quality(rise) for rise in (-1.0, 0.1, 0.11, 0.5, 0.51)] == [1, 1, 2, 2, 3]


def test_inputs_are_quantized_per_token_and_only_inside():
    linear, x = torch.nn.Linear(32, 8), torch.randn(2, 3, 32)
    x[0, 0] *= 100  # a loud token spoils itself only
    model, before = torch.nn.Sequential(linear), linear(x)
    with quantized(model, ["0"], 8):
        close = (model(x) - before).abs().amax(-1)
    with quantized(model, ["0"], 4):
        coarse = (model(x) - before).abs().amax(-1)
    assert (close.flatten()[1:] < 0.1).all() and (close < coarse).all() and (close > 0).all()
    assert torch.equal(model(x), before)


def test_the_study_of_a_tiny_model_is_in_order(monkeypatch, tiny_llama, tokens):
    """Alone and both, at every width; both are never better than noise allows, and nothing is left on the model."""
    monkeypatch.setattr(study, "text_windows", lambda *_: tokens())
    found = {(s.weights, s.inputs): s for s in study.sensitivity(str(tiny_llama()), (8, 2), (8, 2), 32)}
    assert set(found) == {(w, a) for w in (16, 8, 2) for a in (16, 8, 2)}
    assert found[16, 16].rise == 0 and found[16, 16].quality == 1
    moved = {at: abs(s.rise) for at, s in found.items()}
    assert 0 < moved[8, 16] < moved[2, 16] and 0 < moved[16, 8] < moved[16, 2] and moved[8, 8] < moved[2, 2]
    with pytest.raises(BadRequest, match="2 to 8 bits"):
        study.sensitivity("zoo:lm", (16,))


# --- zoo:lm ------------------------------------------------------------------------------------------------------------------


@pytest.mark.acceptance
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_on_every_linear_whitened_beats_plain_beats_none_and_eight_bits_suffice(method, linears):
    for W, H in linears:
        E = errors(W, H, method, Layout(1, 64))
        white, plain, eight = (loss(left(E, H, lorc), H) for lorc in (Lorc(8), Lorc(8, whiten=False), Lorc(8, dtype="int8")))
        assert white <= plain <= loss(E, H)
        assert eight == pytest.approx(white, rel=0.01)


@pytest.mark.acceptance
def test_lorc_lowers_the_divergence_of_three_bits_by_a_fifth_and_beats_smaller_groups_at_equal_bits():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo.path("lm"))
    windows = bitwright.windows(tokenizer, samples=32, split="evaluation")
    base = Baseline.of(bitwright.load(zoo.path("lm")), windows, noise_floor=False)
    data = bitwright.calibration("zoo:lm", samples=16)
    lorc = recipes.zeroquant_v2(bits=3, group=64)
    tried = {
        "none": replace(lorc, corrections=()),
        "lorc": lorc,
        "eight bits": replace(lorc, corrections=(Lorc(8, dtype="int8"),)),
        "groups of 32": recipes.rtn(bits=3, group=32, mse=False),
        "groups of 16": recipes.rtn(bits=3, group=16, mse=False),
    }
    kl, bits = {}, {}
    for name, recipe in tried.items():
        model, report = bitwright.compress("zoo:lm", recipe, data if recipe.needs else None)
        kl[name], bits[name] = evaluate(model, base).divergence.kl.value, report.bpw_linears
    assert kl["lorc"] <= 0.8 * kl["none"]
    assert kl["eight bits"] == pytest.approx(kl["lorc"], rel=0.02) and bits["eight bits"] < bits["lorc"]
    assert kl["eight bits"] < kl["groups of 16"] < kl["groups of 32"] < kl["none"]
    assert bits["eight bits"] < bits["groups of 16"]
