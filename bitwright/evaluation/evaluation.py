"""Evaluation: everything measured on one compressed model, as one frozen value that goes to JSON and back.

The verdict reads the mean KL (card: evaluation, section 7; our convention, on the scale of an 8-billion-parameter
model): below twice the noise floor indistinguishable, < .01 tiny, < .05 small, < .2 visible, else damaged.
"""

from dataclasses import dataclass

import numpy as np

from bitwright.errors import BadRequest
from bitwright.evaluation.base import Json, Score, block_mean, from_json, resamples, to_json
from bitwright.evaluation.divergence import Divergence
from bitwright.evaluation.flips import Flips
from bitwright.evaluation.passages import Passage
from bitwright.evaluation.strata import Stratum

LEVELS = (
    (0.01, "tiny", "a tiny change, the class of 5- and 6-bit files"),
    (0.05, "small", "a small change, the class of 4-bit files"),
    (0.2, "visible", "a visible change, the class of 3-bit files"),
)


@dataclass(frozen=True)
class Data:
    """What was evaluated on. `tokens`: scored ones; `bytes`: UTF-8 bytes of their text; `domains`: windows of each."""

    name: str
    sha256: str
    seed: int
    windows: int
    length: int
    tokens: int
    bytes: int
    domains: dict[str, int]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of both models under a named protocol; `windows-L` scores all but the first token of every window.

    `ratio` = ln(PPL_other / PPL_base) in nats with paired block sd; `ratio_median` the same of the median window, which
    one odd window cannot move; `correlation` of the two models' NLL over tokens. None without a baseline.
    """

    protocol: str
    tokens: int
    base: Score | None
    other: Score
    bits_per_byte_base: float | None
    bits_per_byte: float
    ratio: Score | None
    ratio_median: float | None
    correlation: float | None


@dataclass(frozen=True)
class Run:
    """The baseline against itself, run in another way, on the first windows; flips over their task items."""

    name: str
    windows: int
    kl: float
    same_top: float
    flips: float | None


@dataclass(frozen=True)
class Floor:
    """Noise floor: differences that come from nothing. `kl` is the largest of the runs."""

    kl: float
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Task:
    """One task: the model's accuracy, the log of the probability on all options, and the flips against the baseline."""

    name: str
    n: int
    options: int
    accuracy: float
    mass: float
    mass_base: float | None
    flips: Flips | None


@dataclass(frozen=True)
class Histogram:
    """Tokens by log10 of their KL: `counts[i]` between `edges[i]` and `edges[i+1]`; the ends take what lies beyond."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    level: str
    sentence: str


@dataclass(frozen=True)
class Evaluation:
    """The report's quality section. What needs a baseline is None, or empty, without one."""

    data: Data
    perplexity: Perplexity
    divergence: Divergence | None
    tasks: tuple[Task, ...]
    strata: tuple[Stratum, ...]
    floor: Floor | None
    verdict: Verdict | None
    histogram: Histogram | None
    passages: tuple[Passage, ...]
    window_kl: tuple[float, ...]
    window_nll_base: tuple[float, ...]
    window_nll: tuple[float, ...]

    def to_json(self) -> Json:
        """Plain dict, numbers that are not finite as null."""
        return to_json(self)

    @classmethod
    def from_json(cls, data: Json) -> "Evaluation":
        return from_json(cls, data)


def verdict(kl: float, floor: float | None = None) -> Verdict:
    """One line for the mean KL in nats per token, given the noise floor's mean KL if it was measured."""
    if kl == 0:
        return Verdict("indistinguishable", "The same probabilities at every token.")
    measured = f"Mean KL {kl:.2g} nats per token"
    if floor is not None and kl < 2 * floor:
        return Verdict("indistinguishable", f"{measured}: not distinguishable from the noise floor of {floor:.2g}.")
    for bound, level, words in LEVELS:
        if kl < bound:
            return Verdict(level, f"{measured}: {words}.")
    return Verdict("damaged", f"{measured}: the model is damaged.")


def paired(a: Evaluation, b: Evaluation) -> Score:
    """Mean KL of `a` minus mean KL of `b`, window by window, with a block-bootstrap interval; negative: a is closer.

    Raises:
        BadRequest: they were not evaluated on the same windows against a baseline.
    """
    if a.data.sha256 != b.data.sha256 or not a.window_kl or not b.window_kl:
        raise BadRequest("two evaluations can be paired only on the same windows and against the same baseline")
    count = np.full(len(a.window_kl), float(a.data.length - 1))
    gap = np.array(a.window_kl) - np.array(b.window_kl)
    return block_mean(gap * count, count, resamples(len(count)), "nats")
