"""Perplexity under its published protocols, which are incompatible: a number without the protocol's name says nothing.

    PPL = exp(sum of -log p(x_i | context) / denominator),    bits/byte = sum / (bytes * ln 2)

| protocol | text                 | windows                           | scored                    | denominator    |
| gptq     | rows joined by \\n\\n  | disjoint, 2048, tail dropped      | all but each first token  | tokens         |
| gguf     | the raw file         | disjoint, 512, first token is BOS | the last 255 of 512       | tokens         |
| lm-eval  | detokenised articles | rolling, one token of context     | every token               | words or bytes |
| stride   | any                  | overlapping by length - step      | every token but the first | tokens         |

A plan is the list of windows with what is scored in each; `measure` runs a model over it. Every protocol scores a tail
of its windows, so `first` is all there is to say. Word and byte counts of lm-eval are of the *original* article
although the likelihood is of the detokenised one; that is what its published figures do (card: evaluation, section 1).
Cost: full logits of one batch of windows at a time.
"""

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitwright.calibrate.data import Windows
from bitwright.errors import BadRequest
from bitwright.evaluation.base import Score, block_mean, resamples


@dataclass(frozen=True)
class Window:
    """Token ids of which those from `first` (at least 1) to the end are scored."""

    ids: Int[Tensor, "length"]
    first: int


@dataclass(frozen=True)
class Plan:
    """A protocol's name, its windows, and its denominators by unit, the protocol's own unit first."""

    protocol: str
    windows: tuple[Window, ...]
    units: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """`nats`: summed NLL; `perplexity` by unit; `score`: per scored token, with its interval over windows."""

    protocol: str
    tokens: int
    nats: float
    perplexity: dict[str, float]
    bits_per_byte: float | None
    score: Score


def nll(model: nn.Module, ids: Int[Tensor, "rows length"], batch: int = 8) -> Float[Tensor, "rows scored"]:
    """-log p of tokens 1 .. length-1 of every row in nats, fp64, from the model's logits."""
    out = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for part in ids.split(batch):
            logits = model(input_ids=part[:, :-1].to(device), use_cache=False).logits
            for z, truth in zip(logits, part[:, 1:].to(device)):  # fp64 for one window at a time
                z = z.double()
                out.append((z.logsumexp(1) - z.gather(1, truth[:, None])[:, 0]).cpu())
    return torch.stack(out)


def measure(model: nn.Module, plan: Plan, batch: int = 8) -> Measured:
    """Run a plan: windows of equal length go through the model together."""
    lengths: dict[int, list[int]] = {}
    for i, window in enumerate(plan.windows):
        lengths.setdefault(len(window.ids), []).append(i)
    sums, counts = np.zeros(len(plan.windows)), np.zeros(len(plan.windows))
    training = model.training
    model.eval()
    for same in lengths.values():
        losses = nll(model, torch.stack([plan.windows[i].ids for i in same]), batch)
        for i, loss in zip(same, losses):
            scored = loss[plan.windows[i].first - 1 :]
            sums[i], counts[i] = float(scored.sum()), len(scored)
    model.train(training)
    nats = float(sums.sum())
    mean = block_mean(sums, counts, resamples(len(sums)), "nats")
    return Measured(
        protocol=plan.protocol,
        tokens=int(counts.sum()),
        nats=nats,
        perplexity={unit: math.exp(nats / n) for unit, n in plan.units.items()},
        bits_per_byte=nats / (plan.units["byte"] * math.log(2)) if plan.units.get("byte") else None,
        score=mean.map(math.exp, math.exp(mean.value), "perplexity"),
    )


def disjoint(windows: Windows) -> Plan:
    """`windows-L`, the protocol of our reports: disjoint windows of L tokens, all but the first token scored."""
    rows, length = windows.ids.shape
    units = {"token": rows * (length - 1), "byte": int(windows.bytes.sum())}
    return Plan(f"windows-{length}", tuple(Window(ids, 1) for ids in windows.ids), units)


def gptq(tokenizer: Any, text: str, length: int = 2048) -> Plan:
    """`gptq`: `text` is the rows of the data set joined by blank lines (see `rows`), tokenised once.

    The mean of window means that published code computes equals the mean over tokens, as windows are equally long.
    """
    ids = _whole(tokenizer, text)
    count = len(ids) // length
    _enough(count, 1, "gptq", length, len(ids))
    return _tokens("gptq", [Window(window, 1) for window in ids[: count * length].view(count, length)])


def gguf(tokenizer: Any, text: str, length: int = 512) -> Plan:
    """`gguf`: the file as it is; the second half of each window is scored, so the context is never short.

    The first token of a window is overwritten by the beginning-of-text token if the tokenizer adds one to a text.
    """
    ids = _whole(tokenizer, text)
    count = len(ids) // length
    _enough(count, 2, "gguf", length, len(ids))
    windows = ids[: count * length].view(count, length).clone()
    if tokenizer.bos_token_id is not None and int(ids[0]) == tokenizer.bos_token_id:
        windows[:, 0] = tokenizer.bos_token_id
    return _tokens("gguf", [Window(window, length // 2 + 1) for window in windows])


def lm_eval(tokenizer: Any, articles: list[str], length: int, clean: Callable[[str], str] | None = None) -> Plan:
    """`lm-eval`: each article by itself, from a prefix token, in rolling windows that predict every token once.

    Args:
        length: the model's context; a window holds one token more, as its last is only predicted.
        clean: applied before tokenising; by default `detokenise`. Words and bytes are counted before it.
    """
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise BadRequest("lm-eval needs a beginning- or end-of-text token as prefix: this tokenizer has neither")
    windows = []
    for article in articles:
        coded = tokenizer((clean or detokenise)(article), add_special_tokens=False, verbose=False)["input_ids"]
        ids = torch.tensor([prefix, *coded])
        for start in range(0, len(coded), length):
            end = min(start + length, len(coded))  # tokens start .. end-1 of the article are predicted
            low = max(0, end - length) if start else 0  # the last window reaches back to be full
            windows.append(Window(ids[low : end + 1], start + 1 - low))
    words = sum(len(re.split(r"\s+", article)) for article in articles)
    size = sum(len(article.encode()) for article in articles)
    return Plan("lm-eval", tuple(windows), {"word": words, "byte": size})


def stride(tokenizer: Any, text: str, length: int, step: int) -> Plan:
    """`stride(step)`: windows of `length` that advance by `step`; each scores what the one before had not reached."""
    if not 0 < step <= length:
        raise BadRequest(f"a stride of {step} does not fit windows of {length}: give 1 to {length}")
    ids = _whole(tokenizer, text)
    _enough(len(ids) // 2, 1, "stride", 2, len(ids))
    windows, reached = [], 1
    for start in range(0, len(ids), step):
        end = min(start + length, len(ids))
        windows.append(Window(ids[start:end], max(reached - start, 1)))
        reached = end
        if end == len(ids):
            break
    return _tokens(f"stride({step})", windows)


def rows(raw: str) -> str:
    """A raw file as the usual data set's rows joined by blank lines: lines keep their end, blank ones are empty."""
    return "\n\n".join(line if line.strip() else "" for line in io.StringIO(raw))  # no line end but \n


def articles(raw: str) -> list[str]:
    """WikiText split before its top-level headings (` = Title = `)."""
    parts = re.split(r"(?m)^(?= = [^=\n].*[^=\n] = \n)", raw)
    return [part for part in parts if part.strip()]


SPACED = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"))
PAIRS = (r"\((?P<in>[^)]*?)\)", r"\[(?P<in>[^\]]*?)\]", r"{(?P<in>[^}]*?)}", r'"(?P<in>[^"]*?)"', r"'(?P<in>[^']*?)'")
RULES = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def detokenise(text: str) -> str:
    """Undo WikiText's tokenisation as the published task does, in its order."""
    text = text.replace("s '", "s'")
    for old, new in SPACED:
        text = text.replace(old, new)
    for pair in PAIRS:  # no blanks just inside brackets and quotes
        text = re.sub(pair, lambda found: found[0][0] + found["in"].strip() + found[0][-1], text)
    for old, new in RULES:
        text = text.replace(old, new)
    return text


def _whole(tokenizer: Any, text: str) -> Int[Tensor, "tokens"]:
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def _tokens(protocol: str, windows: list[Window]) -> Plan:
    return Plan(protocol, tuple(windows), {"token": sum(len(w.ids) - w.first for w in windows)})


def _enough(found: int, needed: int, protocol: str, length: int, tokens: int) -> None:
    if found < needed:
        raise BadRequest(f"{protocol} needs {needed * length} tokens of text and got {tokens}: give more text or shorter windows")
