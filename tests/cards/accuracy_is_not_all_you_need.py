"""Card accuracy-is-not-all-you-need: flips and statistics by hand, the closed-form error, order under compression."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matrices import rounded
from scipy.stats import binom, norm, spearmanr
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitwright.calibrate.data import Windows
from bitwright.errors import BadRequest
from bitwright.evaluation import Baseline, compare, evaluate, hidden_states
from bitwright.evaluation.flips import bootstrap_change, holm, mcnemar, noise
from bitwright.evaluation.tasks import answer, copy_items, text_items

ZOO = Path(__file__).parents[2] / "bitwright" / "zoo" / "lm"


def scores(choices: list[int], options: int = 3) -> np.ndarray:
    """Log-probabilities 0.6 for the chosen option and 0.2 for the others."""
    table = np.full((len(choices), options), math.log(0.2))
    table[np.arange(len(choices)), choices] = math.log(0.6)
    return table


# Ten questions whose answer is option 0: two right answers are lost, one is won, one wrong answer moves, six stay.
BASE = [0, 0, 0, 0, 0, 0, 1, 2, 1, 2]
OTHER = [1, 2, 0, 0, 0, 0, 0, 1, 1, 2]
ANSWER = np.zeros(10, np.int64)


def test_ten_items_by_hand():
    found = compare("ten", scores(BASE), scores(OTHER), ANSWER)
    assert (found.lost, found.won, found.moved, found.n) == (2, 1, 1, 10)
    assert found.flips == pytest.approx(0.3) and found.all_flips == pytest.approx(0.4)
    assert (found.accuracy_base, found.accuracy_other) == (0.6, 0.5)
    assert found.delta.value == pytest.approx(-0.1)
    assert found.delta.sd == pytest.approx(math.sqrt((0.3 - 0.01) / 10))
    assert found.delta.high - found.delta.low == pytest.approx(2 * 1.96 * found.delta.sd, rel=1e-4)
    assert found.p == pytest.approx(1.0)  # 1 of 3: both tails are 4/8
    assert found.kl == pytest.approx(0.4 * (0.6 - 0.2) * math.log(3))  # four of ten choices differ
    assert found.ties_base == found.ties_other == 0
    assert found.confident_flips == found.flips  # every margin is 0.4


def test_identical_answers_have_no_flips():
    rng = np.random.default_rng(0)
    same = rng.normal(size=(50, 4))
    found = compare("same", same, same, rng.integers(0, 4, 50))
    assert found.flips == found.all_flips == found.sigma == found.delta.sd == 0 and found.p == 1
    assert found.kl <= 1e-9


def test_mcnemar_is_the_exact_two_sided_binomial():
    for lost, won in ((2, 9), (9, 2), (30, 12), (0, 6)):
        n, low = lost + won, min(lost, won)
        assert mcnemar(lost, won) == pytest.approx(min(1.0, 2 * binom.cdf(low, n, 0.5)), rel=1e-9)
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_ties_go_to_the_lower_index_in_both_models_and_are_counted():
    tied = np.zeros((4, 3))
    found = compare("ties", tied, tied, np.array([0, 0, 1, 2]))
    assert found.accuracy_base == found.accuracy_other == 0.5 and found.flips == 0
    assert found.ties_base == found.ties_other == 4


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two options whose score gap gets Gaussian noise of sd 0.5."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, (4000, 2))
    other = base + rng.normal(0, 0.5 / math.sqrt(2), base.shape)
    return base, other, np.where(rng.random(4000) < 0.7, base.argmax(1), 1 - base.argmax(1))


def test_closed_form_sd_agrees_with_the_bootstrap(noisy):
    closed, resampled = compare("noisy", *noisy).delta, bootstrap_change(*noisy)
    assert closed.value == pytest.approx(resampled.value)
    assert closed.sd == pytest.approx(resampled.sd, rel=0.05)
    assert (closed.low, closed.high) == pytest.approx((resampled.low, resampled.high), abs=0.1 * closed.sd * 4)


def test_paired_error_is_far_below_the_unpaired_one(noisy):
    found = compare("noisy", *noisy)
    unpaired = math.sqrt(sum(a * (1 - a) / found.n for a in (found.accuracy_base, found.accuracy_other)))
    assert found.delta.sd < 0.7 * unpaired


def test_flips_fall_with_the_margin_and_one_sigma_tells_the_noise(noisy):
    found = compare("noisy", *noisy)
    assert found.sigma == pytest.approx(0.5, rel=0.1)
    rates = [part.all_flips for part in found.quartiles]
    assert rates == sorted(rates, reverse=True) and rates[0] > 10 * rates[-1]
    assert sum(part.n * part.flips for part in found.quartiles) == pytest.approx(found.n * found.flips)
    assert found.confident_flips < found.flips
    gap = np.abs(noisy[0][:, 0] - noisy[0][:, 1])
    assert norm.cdf(-gap / found.sigma).mean() == pytest.approx(found.all_flips, rel=0.05)
    assert noise(gap, np.zeros(len(gap), bool)) == 0


# ---- items made from text ----

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
VOCABULARY = ["Ġ" + word for word in WORDS] + [")", "]", "}", "),", "],", "},", ";", "ing"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(VOCABULARY)}, unk_token=";"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module")
def text() -> Windows:
    ids = torch.randint(0, len(VOCABULARY), (20, 128), generator=torch.Generator().manual_seed(0))
    rows = len(ids)
    return Windows(ids, ("made",), torch.zeros(rows, dtype=torch.long), ("t",) * rows, torch.ones(rows).long(), "", None, 0)


def test_items_ask_what_the_text_says_next(text, tokenizer):
    words, brackets = text_items(text, tokenizer)
    ids = text.ids.numpy()
    for items in (words, brackets):
        n = np.arange(len(items.row))
        assert len(n) > 100 and np.array_equal(items.options[n, items.answer], ids[items.row, items.position + 1])
        assert all(len(set(options)) == len(options) for options in items.options.tolist())
        assert items.position.min() >= 32
    after = ids[words.row, words.position + 2]
    assert not (after == VOCABULARY.index("ing")).any()  # "alpha" + "ing" is another word
    assert (words.options < len(WORDS)).all()
    tails = [{VOCABULARY[i][1:] for i in options} for options in brackets.options]
    assert all(len(tail) == 1 for tail in tails) and {"", ","} == set.union(*tails)


def test_distractors_are_drawn_by_frequency(text, tokenizer):
    often = text.ids.clone()
    often[torch.rand(often.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 2
    words, _ = text_items(Windows(**{**vars(text), "ids": often}), tokenizer)
    wrong = np.concatenate([np.delete(options, place) for options, place in zip(words.options, words.answer)])
    counts = np.bincount(wrong, minlength=len(WORDS))
    truths = np.bincount(words.options[np.arange(len(words.answer)), words.answer], minlength=len(WORDS))
    unasked = counts / (len(words.answer) - truths)  # share of the items it could be a distractor of
    assert unasked.argmax() == 2 and unasked[2] > 0.9


def test_copy_items_are_answered_by_looking_back(text):
    ids, items = copy_items(text)
    for row, position, options, place in zip(items.row, items.position, items.options, items.answer):
        line = ids[row].tolist()
        now = line[position]
        assert line[line.index(now) + 1] == options[place] == line[position + 1]  # what followed it the first time
        assert len(set(options.tolist())) == 4 and all(option in line for option in options)
    with pytest.raises(BadRequest, match="longer windows"):
        copy_items(Windows(**{**vars(text), "ids": text.ids[:, :6]}))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(VOCABULARY), max_position_embeddings=128, initializer_range=0.3, **sizes)
    return LlamaForCausalLM(config).eval()


def test_answers_are_the_log_probabilities_of_the_options(text, tokenizer):
    model = llama()
    items = text_items(text, tokenizer)[0]
    found = answer(hidden_states(model, text.ids), model.lm_head, items)
    with torch.no_grad():
        log_p = model(text.ids).logits.double().log_softmax(-1).numpy()
    by_hand = log_p[items.row, items.position][np.arange(len(items.row))[:, None], items.options]
    assert np.allclose(found.scores, by_hand, atol=1e-5)
    assert np.allclose(found.mass, np.log(np.exp(by_hand).sum(1)), atol=1e-5)


def test_every_task_is_compared_with_the_baseline_and_corrected(text, tokenizer):
    model = llama()
    kept = Baseline.of(model, text, tokenizer)
    same, coarse = evaluate(model, kept), evaluate(rounded(model, 2), kept)
    assert [task.name for task in coarse.tasks] == ["next word", "bracket", "copy"]
    assert all(task.flips.all_flips == 0 and task.flips.holm == 1 for task in same.tasks)
    assert all(task.flips.all_flips > 0 and task.flips.p <= task.flips.holm <= 1 for task in coarse.tasks)
    assert all(run.flips is not None for run in kept.floor.runs)
    alone = evaluate(model, None, text, tokenizer)
    assert [task.accuracy for task in alone.tasks] == [task.flips.accuracy_base for task in coarse.tasks]


# ---- acceptance 2 and 4: the zoo's language model ----


@pytest.fixture(scope="module")
def zoo() -> tuple[nn.Module, Baseline]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)
    return model, Baseline.of(model, None, AutoTokenizer.from_pretrained(ZOO))


@pytest.mark.acceptance
def test_kl_and_all_flips_grow_as_bits_fall(zoo):
    model, kept = zoo
    found = [evaluate(rounded(model, bits, 64), kept) for bits in (8, 6, 4, 3, 2)]
    kl = [e.divergence.kl.value for e in found]
    flips = [sum(t.n * t.flips.all_flips for t in e.tasks) for e in found]
    assert all(a < b for series in (kl, flips) for a, b in pairwise(series))


@pytest.mark.acceptance
def test_flips_rank_recipes_as_kl_does(zoo):
    model, kept = zoo
    found = [evaluate(rounded(model, bits, group), kept) for bits in (8, 6, 5, 4, 3, 2) for group in (32, 256)]
    kl = [e.divergence.kl.value for e in found]
    flips = [sum(t.n * t.flips.flips for t in e.tasks) for e in found]
    assert spearmanr(flips, kl).statistic >= 0.9
