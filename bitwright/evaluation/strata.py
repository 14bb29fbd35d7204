"""Where the damage is: the same numbers by domain, by how frequent the true token is, and by how much context it had.

Frequency deciles are of the evaluated text: token types sorted from frequent to rare, cut wherever a tenth of all
scored tokens is full; a type is in one decile only, so deciles are of unequal size and some may be empty.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from bitwright.calibrate.data import Windows
from bitwright.evaluation.base import Score, block_mean
from bitwright.evaluation.divergence import Tokens

POSITIONS = (0, 64, 256, 1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class Stratum:
    """KL, ln ratio and same-top share of one part of the scored tokens."""

    kind: Literal["domain", "frequency", "position"]
    name: str
    tokens: int
    kl: Score
    ratio: Score
    same_top: float


def strata(tokens: Tokens, windows: Windows, draws: Float[np.ndarray, "times windows"]) -> tuple[Stratum, ...]:
    """All strata that hold tokens, in the order domain, frequency (1 = most frequent), position."""
    shape = tokens.kl.shape
    parts: list[tuple[Literal["domain", "frequency", "position"], str, np.ndarray]] = []
    for i, name in enumerate(windows.domains):
        parts.append(("domain", name, np.broadcast_to((windows.domain.numpy() == i)[:, None], shape)))
    decile = deciles(windows.ids.numpy()[:, 1:])
    parts += [("frequency", str(i + 1), decile == i) for i in range(10)]
    context = np.broadcast_to(np.arange(1, shape[1] + 1), shape)  # tokens before the scored one
    for low, high in pairwise(POSITIONS):
        parts.append(("position", f"{low}-{high - 1}", (context >= low) & (context < high)))
    return tuple(_stratum(kind, name, tokens, mask, draws) for kind, name, mask in parts if mask.any())


def deciles(truth: Int[np.ndarray, "rows scored"]) -> Int[np.ndarray, "rows scored"]:
    """Decile 0 (frequent) to 9 (rare) of every token by its frequency in `truth`."""
    _, which, counts = np.unique(truth, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    middle = np.cumsum(counts[order]) - counts[order] / 2
    decile = np.empty(len(counts), np.int64)
    decile[order] = 10 * middle / truth.size
    return decile[which.reshape(truth.shape)]


def _stratum(
    kind: Literal["domain", "frequency", "position"],
    name: str,
    tokens: Tokens,
    mask: Bool[np.ndarray, "rows scored"],
    draws: Float[np.ndarray, "times windows"],
) -> Stratum:
    count = mask.sum(1, dtype=float)

    def mean(values: np.ndarray) -> Score:
        return block_mean(np.where(mask, values, 0).sum(1), count, draws, "nats")

    gap = tokens.nll_other - tokens.nll_base
    return Stratum(kind, name, int(mask.sum()), mean(tokens.kl), mean(gap), float(tokens.same_top[mask].mean()))
