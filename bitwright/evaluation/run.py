"""evaluate(): one model, or one model against the one it was made from, on the same windows.

One pass of each model's body; all numbers come from the states that enter the head (see hidden.py, divergence.py).
Perplexity under the published protocols has its own windows and lives in perplexity.py.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from bitwright.calibrate.data import Windows
from bitwright.errors import BadRequest
from bitwright.evaluation.base import Score, block_mean, resamples
from bitwright.evaluation.baseline import Baseline, Questions, Reading, chosen
from bitwright.evaluation.divergence import Tokens, divergence, summarise, surprise
from bitwright.evaluation.evaluation import Data, Evaluation, Histogram, Perplexity, Task, verdict
from bitwright.evaluation.flips import compare, holm
from bitwright.evaluation.passages import passages
from bitwright.evaluation.strata import strata
from bitwright.progress import Progress, silent

EDGES = tuple(round(-8 + i / 4, 2) for i in range(41))  # log10 of KL from 1e-8 to 1e2, four bins a decade


def evaluate(
    model: nn.Module,
    against: nn.Module | Baseline | None = None,
    windows: Windows | None = None,
    tokenizer: Any = None,
    *,
    batch: int = 8,
    noise_floor: bool = True,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a model; with `against`, also how far it is from that one.

    Args:
        against: the model it was made from, or a `Baseline` of it, whose windows and tokenizer then count.
        windows: evaluation windows; by default 64 of 512 tokens of the standard library's evaluation half.
        tokenizer: see `Baseline.of`.
        progress: called with (what, done, of).

    Raises:
        BadRequest: no text, windows too long, different vocabularies, logits that are not head times states, or
            windows other than those of the given Baseline.
    """
    if against is None:
        windows = chosen(model, windows, tokenizer)
        reading = Reading.of(model, windows, Questions.of(windows, tokenizer), batch, None, progress)
        return _alone(reading, windows, surprise(reading.hidden, reading.head, windows.ids, progress))
    if not isinstance(against, Baseline):
        against = Baseline.of(against, windows, tokenizer, batch=batch, noise_floor=noise_floor, progress=progress)
    elif windows is not None and windows.sha256 != against.windows.sha256:
        raise BadRequest("the Baseline was made on other windows: leave out windows, or make it anew on these")
    base, windows = against.reading, against.windows
    reading = Reading.of(model, windows, against.questions, batch, None, progress)
    tokens = divergence(base.hidden, base.head, reading.hidden, reading.head, windows.ids, progress)
    return _paired(reading, against, tokens)


def _alone(reading: Reading, windows: Windows, nll: Float[np.ndarray, "rows scored"]) -> Evaluation:
    draws = resamples(len(nll))
    other, bits = perplexity(nll, int(windows.bytes.sum()), draws)
    return Evaluation(
        data=_data(windows),
        perplexity=Perplexity(_protocol(windows), nll.size, None, other, None, bits, None, None, None),
        divergence=None,
        tasks=_tasks(reading, None),
        strata=(),
        floor=None,
        verdict=None,
        histogram=None,
        passages=(),
        window_kl=(),
        window_nll_base=(),
        window_nll=_per_window(nll),
    )


def _paired(reading: Reading, against: Baseline, tokens: Tokens) -> Evaluation:
    windows, draws = against.windows, resamples(len(tokens.kl))
    size = int(windows.bytes.sum())
    base, bits_base = perplexity(tokens.nll_base, size, draws)
    other, bits = perplexity(tokens.nll_other, size, draws)
    gap = tokens.nll_other - tokens.nll_base
    count = np.full(len(gap), float(gap.shape[1]))
    distance = summarise(tokens, draws)
    return Evaluation(
        data=_data(windows),
        perplexity=Perplexity(
            protocol=_protocol(windows),
            tokens=gap.size,
            base=base,
            other=other,
            bits_per_byte_base=bits_base,
            bits_per_byte=bits,
            ratio=block_mean(gap.sum(1), count, draws, "nats"),
            ratio_median=float(np.median(gap.mean(1))),
            correlation=correlation(tokens.nll_base, tokens.nll_other),
        ),
        divergence=distance,
        tasks=_tasks(reading, against.reading),
        strata=strata(tokens, windows, draws),
        floor=against.floor,
        verdict=verdict(distance.kl.value, against.floor.kl if against.floor else None),
        histogram=histogram(tokens.kl),
        passages=passages(tokens, windows, against.tokenizer),
        window_kl=_per_window(tokens.kl),
        window_nll_base=_per_window(tokens.nll_base),
        window_nll=_per_window(tokens.nll_other),
    )


def _data(windows: Windows) -> Data:
    rows, length = windows.ids.shape
    share = windows.domain.bincount(minlength=len(windows.domains)).tolist()
    tokens, size = rows * (length - 1), int(windows.bytes.sum())
    domains = dict(zip(windows.domains, share))
    return Data(windows.name, windows.sha256, windows.seed, rows, length, tokens, size, domains)


def _protocol(windows: Windows) -> str:
    return f"windows-{windows.ids.shape[1]}"


def perplexity(nll: np.ndarray, size: int, draws: np.ndarray) -> tuple[Score, float]:
    """Of -log p [rows, answers] in nats, with bits per byte of a text of `size` bytes."""
    mean = block_mean(nll.sum(1), np.full(len(nll), float(nll.shape[1])), draws, "nats")
    bits = float(nll.sum() / (size * math.log(2))) if size else math.nan
    return mean.map(_exp, _exp(mean.value), "perplexity"), bits


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else None


def _tasks(reading: Reading, base: Reading | None) -> tuple[Task, ...]:
    before = base.answers if base else [None] * len(reading.answers)
    tasks = []
    for (items, answers), was in zip(reading.answers, before):
        n, options = items.options.shape
        right = float((answers.scores.argmax(1) == items.answer).mean())
        flips = compare(items.name, was[1].scores, answers.scores, items.answer) if was else None
        mass = float(was[1].mass.mean()) if was else None
        tasks.append(Task(items.name, n, options, right, float(answers.mass.mean()), mass, flips))
    corrected = holm([task.flips.p for task in tasks if task.flips])
    if base is None:
        return tuple(tasks)
    return tuple(replace(t, flips=replace(t.flips, holm=p)) for t, p in zip(tasks, corrected) if t.flips)


def histogram(kl: np.ndarray) -> Histogram:
    finite = kl[np.isfinite(kl)]
    logs = np.log10(np.maximum(finite, 1e-30)).clip(EDGES[0], EDGES[-1])
    return Histogram(EDGES, tuple(int(count) for count in np.histogram(logs, EDGES)[0]))


def _per_window(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values.mean(1))
