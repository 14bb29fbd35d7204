"""Card evaluation, acceptance 1: every protocol's number, computed again by an independent script."""

import math
import re
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from bitwright.errors import BadRequest
from bitwright.evaluation import perplexity

LETTERS = "abcdefgh ,.=\n"
END = len(LETTERS)  # id of the beginning-of-text token
V = END + 1


# A language model whose probabilities are fractions anyone can check: they depend on the current token and on the sum
# of the whole context modulo 5, so a window that starts one token too early changes every number.
def share(state: int, now: int, following: int) -> Fraction:
    weight = [1 + (3 * state + 5 * now + 7 * v) % 11 for v in range(V)]
    return Fraction(weight[following], sum(weight))


class Toy(nn.Module):
    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.head = nn.Linear(table.shape[0], table.shape[1], bias=False)
        self.head.weight = nn.Parameter(table.T.contiguous())

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        state = input_ids.cumsum(1) % 5 * V + input_ids
        return SimpleNamespace(logits=self.head(nn.functional.one_hot(state, 5 * V).to(self.head.weight.dtype)))


def toy() -> Toy:
    rows = [[math.log(share(s, now, v)) for v in range(V)] for s in range(5) for now in range(V)]
    return Toy(torch.tensor(rows, dtype=torch.float64))


def by_hand(context: list[int], following: int) -> float:
    return -math.log(share(sum(context) % 5, context[-1], following))


def letters(bos: bool) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({**{c: i for i, c in enumerate(LETTERS)}, "<s>": END}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", END)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def text(n: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("abcdefgh ,."), n))


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-9)


# ---- acceptance 1: protocols ----


@pytest.mark.parametrize("bos", [True, False])
def test_gptq_is_the_mean_of_the_means_of_disjoint_windows(bos):
    raw, length = text(700), 64
    ids = [END] * bos + [LETTERS.index(c) for c in raw]
    means = []
    for start in range(0, len(ids) - length + 1, length):
        window = ids[start : start + length]
        means.append(sum(by_hand(window[:i], window[i]) for i in range(1, length)) / (length - 1))
    found = perplexity.measure(toy(), perplexity.gptq(letters(bos), raw, length))
    assert found.perplexity["token"] == near(math.exp(sum(means) / len(means)))
    assert found.tokens == len(means) * (length - 1) and found.protocol == "gptq"


@pytest.mark.parametrize("bos", [True, False])
def test_gguf_scores_the_second_half_after_an_overwritten_first_token(bos):
    raw, length = text(700, 1), 64
    ids = [END] * bos + [LETTERS.index(c) for c in raw]
    losses = []
    for start in range(0, len(ids) - length + 1, length):
        window = ids[start : start + length]
        window[0] = END if bos else window[0]
        losses += [by_hand(window[: p + 1], window[p + 1]) for p in range(length // 2, length - 1)]
    found = perplexity.measure(toy(), perplexity.gguf(letters(bos), raw, length))
    assert found.perplexity["token"] == near(math.exp(sum(losses) / len(losses)))


def test_gguf_scores_255_of_512_with_context_of_at_least_256():
    plan = perplexity.gguf(letters(True), text(512 * 3))
    assert [len(w.ids) - w.first for w in plan.windows] == [255] * 3 and plan.units["token"] == 3 * 255
    assert min(w.first for w in plan.windows) > 256
    with pytest.raises(BadRequest, match="gguf needs 1024 tokens"):
        perplexity.gguf(letters(True), text(600))


def test_lm_eval_predicts_every_token_once_and_divides_by_the_original_words_and_bytes():
    pages, length = [text(200, 2) + " , " + text(33, 3), text(40, 4), text(128, 5)], 64
    total = 0.0
    for page in pages:
        ids = [LETTERS.index(c) for c in page.replace(" , ", ", ").replace(" . ", ". ")]
        whole, done = [END, *ids], 0
        while done < len(ids):
            end = min(done + length, len(ids))
            start = 0 if done == 0 else end - length  # every later window is full: the last reaches back
            for i in range(done, end):
                total += by_hand(whole[start : i + 1], ids[i])
            done = end
    plan = perplexity.lm_eval(letters(False), pages, length, clean=lambda p: p.replace(" , ", ", ").replace(" . ", ". "))
    found = perplexity.measure(toy(), plan)
    words, size = sum(len(re.split(r"\s+", p)) for p in pages), sum(map(len, pages))
    assert found.perplexity["word"] == near(math.exp(total / words))
    assert found.perplexity["byte"] == near(math.exp(total / size))
    assert found.bits_per_byte == near(total / size / math.log(2))
    assert max(len(w.ids) for w in plan.windows) == length + 1


def test_stride_scores_every_token_but_the_first_once():
    raw, length, step = text(300, 6), 64, 24
    ids = [LETTERS.index(c) for c in raw]
    total = sum(by_hand(ids[:i], ids[i]) for i in range(1, length))
    for end in [*range(length + step, len(ids), step), len(ids)]:
        start = (end - length + step - 1) // step * step  # windows start at multiples of the step
        before = start - step + length
        total += sum(by_hand(ids[start:i], ids[i]) for i in range(before, end))
    found = perplexity.measure(toy(), perplexity.stride(letters(False), raw, length, step))
    assert found.tokens == len(ids) - 1
    assert found.perplexity["token"] == near(math.exp(total / (len(ids) - 1)))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    uniform = Toy(torch.zeros(5 * V, V, dtype=torch.float64))
    for plan in (perplexity.gptq(letters(True), text(300), 32), perplexity.gguf(letters(True), text(300), 32)):
        assert perplexity.measure(uniform, plan).perplexity["token"] == pytest.approx(V, rel=1e-14)


def test_rows_articles_and_detokenised_text():
    raw = " = One = \n \n a @-@ b , c \n = = Part = = \n d ( e ) ' f ' \n = Two = \n g 's \n"
    assert perplexity.rows(raw).startswith(" = One = \n\n\n\n\n a @-@ b")  # the blank line became an empty row
    assert [article.strip()[:7] for article in perplexity.articles(raw)] == ["= One =", "= Two ="]
    clean = perplexity.detokenise(raw)
    assert "a-b, c\n" in clean and "== Part ==" in clean and "d (e) 'f'" in clean and "g's" in clean
