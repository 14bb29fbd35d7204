"""Flips: answers that change although accuracy does not (arXiv 2407.09141; card: accuracy-is-not-all-you-need).

Baseline b and compressed q choose among the same options, by the highest score. With N items, of which `lost` were
right under b and wrong under q, `won` the reverse, and `moved` wrong in two different ways:

    flips = (lost + won)/N     AllFlips = (lost + won + moved)/N     delta = (won - lost)/N
    sd(delta)^2 = (flips - delta^2)/N     McNemar: exact binomial on lost of lost + won, p = 1/2

Flips are the noise of the accuracy difference. Choices change where the baseline's top two options are close, so flips
come by quartile of its margin, and one number sums the curve up: with noise of sd sigma on the score gap,
P(choice changes) = Phi(-gap/sigma); sigma is its maximum likelihood estimate (ours, beyond the paper).
Items count as independent: an interval is too narrow where many come from one window.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bitwright.evaluation.base import MIDDLE, Score


@dataclass(frozen=True)
class Quartile:
    """Items whose baseline margin (first minus second option probability) lies between `low` and `high`."""

    low: float
    high: float
    n: int
    flips: float
    all_flips: float


@dataclass(frozen=True)
class Flips:
    """One task, two models. `kl` and `margin` are over the options' softmax; `holm` is filled in over all tasks."""

    name: str
    n: int
    accuracy_base: float
    accuracy_other: float
    delta: Score
    lost: int
    won: int
    moved: int
    flips: float
    all_flips: float
    confident_flips: float | None  # flips among items of baseline margin above 0.1; None without such items
    p: float
    holm: float
    kl: float
    sigma: float
    ties_base: int
    ties_other: int
    quartiles: tuple[Quartile, ...]


def compare(
    name: str,
    base: Float[np.ndarray, "items options"],
    other: Float[np.ndarray, "items options"],
    answer: Int[np.ndarray, "items"],
) -> Flips:
    """Compare the choices of two models from their option scores (log-likelihoods, normalised the same way in both).

    Ties go to the lower index in both models and are counted.
    """
    n = len(answer)
    b, q = base.argmax(1), other.argmax(1)
    right_b, right_q = b == answer, q == answer
    lost, won = int((right_b & ~right_q).sum()), int((~right_b & right_q).sum())
    changed, flipped = b != q, right_b != right_q
    log_b, log_q = _log_softmax(base), _log_softmax(other)
    first, second = np.sort(log_b, axis=1)[:, :-3:-1].T
    margin = np.exp(first) - np.exp(second)
    sure = margin > 0.1
    parts = np.array_split(np.argsort(margin, kind="stable"), 4)
    return Flips(
        name=name,
        n=n,
        accuracy_base=float(right_b.mean()),
        accuracy_other=float(right_q.mean()),
        delta=accuracy_change(lost, won, n),
        lost=lost,
        won=won,
        moved=int((changed & ~flipped).sum()),
        flips=float(flipped.mean()),
        all_flips=float(changed.mean()),
        confident_flips=float(flipped[sure].mean()) if sure.any() else None,
        p=mcnemar(lost, won),
        holm=math.nan,
        kl=float((np.exp(log_b) * (log_b - log_q)).sum(1).mean()),
        sigma=noise(first - second, changed),
        ties_base=_ties(base),
        ties_other=_ties(other),
        quartiles=tuple(
            Quartile(
                float(margin[part].min()),
                float(margin[part].max()),
                len(part),
                float(flipped[part].mean()),
                float(changed[part].mean()),
            )
            for part in parts
            if len(part)
        ),
    )


def accuracy_change(lost: int, won: int, n: int) -> Score:
    """Accuracy of the compressed model minus the baseline's, with the paired closed-form sd and a normal interval."""
    delta = (won - lost) / n
    sd = math.sqrt(((lost + won) / n - delta**2) / n)
    return Score(delta, delta - 1.959964 * sd, delta + 1.959964 * sd, sd, n, "share")


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p value for "right answers are lost as often as they are won"; 1 without flips."""
    from scipy.stats import binomtest

    return float(binomtest(min(lost, won), lost + won, 0.5).pvalue) if lost + won else 1.0


def holm(p: list[float]) -> list[float]:
    """Holm's step-down correction of several p values, in their order."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate([(len(p) - rank) * p[i] for rank, i in enumerate(order)])
    out = np.empty(len(p))
    out[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in out]


def noise(gap: Float[np.ndarray, "items"], changed: "np.ndarray") -> float:
    """The sigma for which P(change) = Phi(-gap/sigma) makes the observed changes most likely; 0 without changes."""
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    if not changed.any():
        return 0.0

    def loss(log_sigma: float) -> float:
        at = gap / math.exp(log_sigma)
        return float(-norm.logcdf(np.where(changed, -at, at)).sum())

    return math.exp(minimize_scalar(loss, bounds=(-12, 6), method="bounded").x)


def bootstrap_change(
    base: Float[np.ndarray, "items options"],
    other: Float[np.ndarray, "items options"],
    answer: Int[np.ndarray, "items"],
    times: int = 2000,
    seed: int = 0,
) -> Score:
    """The accuracy change with sd and interval from resampled items: the check of the closed form."""
    change = (other.argmax(1) == answer).astype(float) - (base.argmax(1) == answer)
    n = len(change)
    means = np.random.default_rng(seed).choice(change, (times, n)).mean(1)
    low, high = np.quantile(means, MIDDLE)
    return Score(float(change.mean()), float(low), float(high), float(means.std(ddof=1)), n, "share")


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    centred = scores - scores.max(1, keepdims=True)
    return centred - np.log(np.exp(centred).sum(1, keepdims=True))


def _ties(scores: np.ndarray) -> int:
    return int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum())
