"""Card evaluation: every protocol's number by hand, distances that vanish for equal models, intervals that cover."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrices import rounded
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bitwright.calibrate.data import Windows
from bitwright.errors import BadRequest
from bitwright.evaluation import Baseline, Evaluation, evaluate, hidden_states, paired, perplexity, verdict
from bitwright.evaluation.base import block_mean, block_quantiles, resamples
from bitwright.evaluation.divergence import divergence
from bitwright.evaluation.strata import deciles

ZOO = Path(__file__).parents[2] / "bitwright" / "zoo" / "lm"


# ---- acceptance 2 and 5: distances ----


def random_windows(rows: int, length: int, vocabulary: int = 96, seed: int = 0) -> Windows:
    gen = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, length), generator=gen)
    kinds, titles = ("even", "odd"), tuple(f"text {i // 2}" for i in range(rows))
    return Windows(ids, kinds, torch.arange(rows) % 2, titles, torch.full((rows,), 3 * length), "random", None, seed)


def llama(seed: int = 0, **extra: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        **extra,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return llama()


@pytest.fixture(scope="module")
def data() -> Windows:
    return random_windows(12, 64)


@pytest.fixture(scope="module")
def baseline(base, data) -> Baseline:
    return Baseline.of(base, data, batch=5)


def test_an_equal_model_is_at_distance_zero(base, baseline):
    found = evaluate(copy.deepcopy(base), baseline, batch=5)
    d, p = found.divergence, found.perplexity
    assert d.kl.value == d.kl.high == d.ladder["max"].value == d.delta_p_rms.value == 0
    assert d.same_top.value == 1 and d.broken == 0
    assert p.ratio.value == p.ratio.sd == 0 and p.base == p.other and p.correlation == pytest.approx(1)
    assert all(task.flips.all_flips == 0 and task.flips.p == 1 for task in found.tasks)
    assert found.verdict.level == "indistinguishable"


@pytest.mark.parametrize("bias", [False, True])
def test_states_and_head_give_the_divergence_of_the_full_logits(base, data, bias):
    one, two = llama(), rounded(llama(), 4)
    if bias:  # a head is whatever module the model has, not a matrix
        for i, model in enumerate((one, two)):
            model.lm_head = nn.Linear(32, 96)
            model.lm_head.bias.data.normal_(0, i + 1)
    found = divergence(hidden_states(one, data.ids, 5), one.lm_head, hidden_states(two, data.ids, 4), two.lm_head, data.ids)
    with torch.no_grad():
        b, q = (model(data.ids).logits[:, :-1].double().log_softmax(-1) for model in (one, two))
    kl = (b.exp() * (b - q)).sum(-1)
    truth = data.ids[:, 1:, None]
    assert np.allclose(found.kl, kl, rtol=1e-4, atol=1e-6) and kl.mean() > 1e-3
    assert np.allclose(found.nll_base, -b.gather(2, truth)[..., 0], atol=1e-5)
    assert np.allclose(found.nll_other, -q.gather(2, truth)[..., 0], atol=1e-5)
    assert np.allclose(found.delta_p, (q.exp() - b.exp()).gather(2, truth)[..., 0], atol=1e-6)
    assert np.array_equal(found.same_top, b.argmax(-1) == q.argmax(-1))
    top, where = b.topk(24, -1)  # a stored top-k with one lump for the tail can only lose divergence
    lumped = [torch.cat([x, (1 - x.exp().sum(-1, keepdim=True)).log()], -1) for x in (top, q.gather(2, where))]
    assert ((lumped[0].exp() * (lumped[0] - lumped[1])).sum(-1) <= kl + 1e-9).all()


def test_divergence_of_an_8_bit_model_loses_nothing_on_the_way_through_storage(base, data, tmp_path):
    other = rounded(base, 8)
    stored = hidden_states(base, data.ids, 4, path=tmp_path / "states.safetensors")
    found = divergence(stored, base.lm_head, hidden_states(other, data.ids, 4), other.lm_head, data.ids)
    with torch.no_grad():
        b, q = (copy.deepcopy(m).double()(data.ids).logits[:, :-1].log_softmax(-1) for m in (base, other))
    assert found.kl.mean() == pytest.approx(float((b.exp() * (b - q)).sum(-1).mean()), rel=0.02)
    assert torch.equal(load_file(tmp_path / "states.safetensors")["states"], hidden_states(base, data.ids, 4).states)


def test_states_are_those_of_a_model_left_as_it_was(base, data):
    model, formed = llama().train(), []
    model.lm_head.register_forward_hook(lambda head, args, logits: formed.append(logits.shape[:2].numel()))
    states = hidden_states(model, data.ids, 7).states
    assert sum(formed) < data.ids.numel() / 10  # the head is not asked for logits on the way
    assert model.training and not model.lm_head._forward_pre_hooks
    with torch.no_grad():
        assert torch.allclose(states, base.model(data.ids).last_hidden_state, atol=1e-5)


def test_what_cannot_be_scored_is_refused_with_the_reason(base, data):
    class Capped(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = 3 * torch.tanh(out.logits / 3)
            return out

    with pytest.raises(BadRequest, match="soft cap"):
        hidden_states(Capped(base.config), data.ids)
    with pytest.raises(BadRequest, match="128 positions: use shorter windows"):
        hidden_states(base, random_windows(1, 200).ids)
    with pytest.raises(BadRequest, match="no output head"):
        hidden_states(base.model.layers[0], data.ids)
    with pytest.raises(BadRequest, match="needs text"):
        evaluate(base)
    with pytest.raises(BadRequest, match="other windows"):
        evaluate(base, Baseline.of(base, data, noise_floor=False), random_windows(2, 64, seed=3))
    wide = llama()
    wide.resize_token_embeddings(100)
    with pytest.raises(BadRequest, match="vocabularies of 96 and 100"):
        evaluate(wide, Baseline.of(base, data, noise_floor=False))


def test_evaluation_is_the_same_after_json_and_agrees_with_itself(base, baseline, data):
    small, large = (evaluate(rounded(base, bits), baseline) for bits in (6, 3))
    again = json.loads(json.dumps(small.to_json(), allow_nan=False))
    assert Evaluation.from_json(again).to_json() == again and isinstance(Evaluation.from_json(again), Evaluation)
    assert small.divergence.kl.value < large.divergence.kl.value and small.verdict.level != large.verdict.level
    assert small.divergence.kl.low < small.divergence.kl.value < small.divergence.kl.high
    assert sum(small.histogram.counts) == small.data.tokens == 12 * 63
    rungs = [score.value for score in small.divergence.ladder.values()]
    assert rungs == sorted(rungs)
    for kind in ("domain", "frequency", "position"):
        parts = [s for s in small.strata if s.kind == kind]
        assert sum(s.tokens for s in parts) == small.data.tokens
        assert sum(s.tokens * s.kl.value for s in parts) == pytest.approx(small.data.tokens * small.divergence.kl.value)
    assert np.mean(small.window_kl) == pytest.approx(small.divergence.kl.value)
    assert paired(small, large).high < 0 < paired(large, small).low
    assert paired(small, large).value == pytest.approx(small.divergence.kl.value - large.divergence.kl.value)


def test_a_model_alone_has_the_perplexity_of_its_protocol(base, data):
    alone = evaluate(base, None, data)
    plan = perplexity.disjoint(data)
    by_plan = perplexity.measure(base, plan)
    assert alone.perplexity.protocol == plan.protocol == "windows-64"
    assert alone.perplexity.other.value == pytest.approx(by_plan.perplexity["token"], rel=1e-5)
    assert alone.perplexity.bits_per_byte == pytest.approx(by_plan.bits_per_byte, rel=1e-5)
    assert alone.divergence is alone.verdict is None and alone.perplexity.ratio is None
    assert json.loads(json.dumps(alone.to_json())) == alone.to_json()


def test_passages_come_from_different_documents_and_mark_where_first_choices_differ(base, baseline, data):
    found = evaluate(rounded(base, 3), baseline)
    assert len({p.title for p in found.passages}) == len(found.passages) == 5
    for passage in found.passages:
        assert len(passage.tokens) == len(passage.kl) <= 60
        assert passage.kl[passage.peak] == max(passage.kl)
        assert all(mark.base != mark.other and 0 <= mark.p_base <= 1 for mark in passage.marks)
    assert any(passage.marks for passage in found.passages)


def test_a_broken_model_is_called_damaged(base, baseline):
    broken = copy.deepcopy(base)
    broken.lm_head.weight.data[0] = math.nan
    found = evaluate(broken, baseline)
    assert found.divergence.broken == found.data.tokens and found.verdict.level == "damaged"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["divergence"]["kl"]["value"] is None


def test_the_noise_floor_is_measured_and_below_any_compression(base, baseline, data):
    batches, bf16 = baseline.floor.runs
    assert batches.kl <= 1e-6 < bf16.kl == baseline.floor.kl and bf16.name == "bfloat16"
    assert evaluate(rounded(base, 4), baseline).divergence.kl.value > 2 * baseline.floor.kl


def test_a_baseline_does_not_follow_its_model(data):
    model = llama()
    kept = Baseline.of(model, data, noise_floor=False)
    before = evaluate(rounded(model, 4), kept).divergence.kl.value
    compressed = rounded(model, 4)
    model.load_state_dict(compressed.state_dict())  # compressed in place
    assert evaluate(model, kept).divergence.kl.value == pytest.approx(before)


@pytest.mark.parametrize(
    ("kl", "level"),
    [(1e-5, "indistinguishable"), (3e-5, "tiny"), (0.02, "small"), (0.1, "visible"), (0.2, "damaged")],
)
def test_verdict_by_kl(kl, level):
    assert verdict(kl, 1e-5).level == level
    assert verdict(math.nan).level == "damaged"


def test_frequency_deciles_go_from_frequent_to_rare():
    rng = np.random.default_rng(0)
    truth = np.minimum(rng.geometric(0.02, (50, 100)), 400)
    decile = deciles(truth)
    counts = np.bincount(truth.ravel())
    means = [counts[truth[decile == i]].mean() for i in range(10)]
    assert means == sorted(means, reverse=True) and set(np.unique(decile)) == set(range(10))


# ---- acceptance 3: intervals ----


@pytest.fixture(scope="module")
def correlated() -> np.ndarray:
    """Gaps l_q - l_b of 80 windows: each window has its own mean and its tokens follow one another."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (80, 300))
    for t in range(1, 300):
        noise[:, t] += 0.7 * noise[:, t - 1]
    return 0.02 + rng.normal(0, 0.2, (80, 1)) + noise


def test_block_intervals_of_half_the_windows_cover_the_whole_and_token_intervals_do_not(correlated):
    rng, draws = np.random.default_rng(1), resamples(40, 1000)
    blocks = tokens = 0
    widths = []
    for _ in range(200):
        half = correlated[rng.permutation(80)[:40]]
        score = block_mean(half.sum(1), np.full(40, 300.0), draws, "nats")
        iid = half.std(ddof=1) / math.sqrt(half.size)
        blocks += score.low <= correlated.mean() <= score.high
        tokens += abs(half.mean() - correlated.mean()) <= 1.96 * iid
        widths.append(score.sd / iid)
    assert blocks >= 180 > tokens
    assert min(widths) > 1.5


def test_the_block_formula_is_the_sd_of_the_bootstrap(correlated):
    counts = np.random.default_rng(2).integers(50, 300, 80).astype(float)  # unequal windows, and a mean far from zero
    sums = np.array([row[: int(n)].sum() for row, n in zip(correlated + 2, counts)])
    draws = resamples(80)
    means = (draws @ sums) / (draws @ counts)
    assert block_mean(sums, counts, draws, "nats").sd == pytest.approx(means.std(), rel=0.05)


def test_quantile_intervals_are_those_of_a_plain_bootstrap(correlated):
    draws = resamples(80, 300)
    median, top = block_quantiles(correlated, [0.5, 1.0], draws, "nats")
    plain = []
    for row in draws.astype(int):
        plain.append(np.median(correlated[np.repeat(np.arange(80), row)]))
    assert median.value == np.median(correlated) and top.value == top.high == correlated.max()
    assert (median.low, median.high) == pytest.approx(np.quantile(plain, (0.025, 0.975)), abs=1e-3)


def test_one_window_has_a_value_and_no_interval(base):
    found = evaluate(rounded(base, 4), base, random_windows(1, 32), noise_floor=False)
    assert math.isfinite(found.divergence.kl.value) and math.isnan(found.divergence.kl.low)
    assert found.to_json()["perplexity"]["ratio"]["sd"] is None and found.floor is None


# ---- acceptance 4: the zoo's language model ----


@pytest.mark.acceptance
def test_paired_errors_are_far_smaller_and_kl_far_clearer():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)
    kept = Baseline.of(model, None, AutoTokenizer.from_pretrained(ZOO))
    found = {bits: evaluate(rounded(model, bits, 64), kept) for bits in (8, 4)}
    for bits, factor in ((8, 10), (4, 4)):
        p = found[bits].perplexity
        unpaired = math.hypot(p.base.sd / p.base.value, p.other.sd / p.other.value)
        assert p.ratio.sd <= unpaired / factor
    kl, ratio = found[8].divergence.kl, found[8].perplexity.ratio
    assert kl.value / kl.sd > 5 * abs(ratio.value / ratio.sd)
