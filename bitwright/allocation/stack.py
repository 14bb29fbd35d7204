"""Stack: how much each matrix gets is decided when a model is loaded (BitStack, arXiv 2410.23918; card: bitstack).

    order all terms once, so that every prefix of the order is a good model of its size;   load the longest prefix that fits

What a term is worth is its gain: by how much the loss falls when its matrix goes from b terms to b + 1. The best gain goes first,
and no matrix runs more than `gap` terms ahead of the one that has fewest: gap 1 is the paper's "average" order, all second terms,
best first, then all third ones. Where the gains come from (`by`), L the model's loss per token:

    errors       the share of its output energy that a matrix loses, e_b = tr(E H E^T) / tr(W H W^T): free, but blind
    sensitivity  e_b times (L(this one at one term, all others whole) - L(whole)) / (e_1 - e_all): one pass of the model per matrix
    perplexity   L(all at b) - L(all at b, this one at b + 1), as the paper: one pass per term, hours for large models

On zoo:lm at 2.3 bits per weight these leave 5.17, 4.17 and 4.17 nats: sensitivity is the default. Differs from the paper: gains
are counted per byte (matrices differ in size). A level with a gain that is no number (perplexity overflows where few terms are
left) takes the gains of the next, as there. The last two need the whole model in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import total

Gains = Mapping[str, Sequence[float]]  # of every matrix: what its second, third, ... term gains
Score = Callable[[Mapping[str, int]], float]  # terms of every matrix -> loss of the model, lower is better


@dataclass(frozen=True)
class Stack:
    """`by`: what a gain is. `gap`: by how many terms a matrix may be ahead of another (None: any number). `per_byte`: gains are
    divided by what a term takes."""

    by: Literal["errors", "sensitivity", "perplexity"] = "sensitivity"
    gap: int | None = 1
    per_byte: bool = True
    probe = None

    def __post_init__(self) -> None:
        if self.gap is not None and self.gap < 1:
            raise ValueError("a matrix must be allowed to be one term ahead")

    def order(self, gains: Gains, sizes: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
        """(matrix, its number of terms from here on), one after the other, from one term of each up to all. `sizes`: what the
        second, third, ... term takes."""
        gains, have, found = finite(gains), dict.fromkeys(gains, 1), []
        open_ = {name for name, more in gains.items() if more}

        def worth(name: str) -> float:
            at = have[name] - 1
            return gains[name][at] / (sizes[name][at] if self.per_byte else 1)

        while open_:
            least = min(have[name] for name in open_)
            allowed = [name for name in gains if name in open_ and (self.gap is None or have[name] < least + self.gap)]
            best = max(allowed, key=worth)  # the first of equals, so that the order is the same everywhere
            have[best] += 1
            found.append((best, have[best]))
            if have[best] > len(gains[best]):
                open_.remove(best)
        return found

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        """The longest prefix of the order that the budget holds; choices are numbers of terms."""
        ways = enumerate(price.argsort(dim=1, stable=True).tolist())
        steps = {str(u): [c for c in order if isfinite(loss[u, c])] for u, order in ways}
        gains = falls({u: [float(loss[int(u), c]) for c in order] for u, order in steps.items()})
        sizes = {u: [int(price[int(u), b] - price[int(u), a]) for a, b in pairwise(order)] for u, order in steps.items()}
        choice = torch.tensor([order[0] for order in steps.values()])
        for unit, terms in self.order(gains, sizes):
            more = choice.clone()
            more[int(unit)] = steps[unit][terms - 1]
            if total(price, more) > budget:
                break
            choice = more
        return choice


def falls(losses: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Gains where the losses of matrices add up: by how much each falls from one, two, ... terms to one more."""
    return {name: [before - after for before, after in pairwise(path)] for name, path in losses.items()}


def weighed(losses: Mapping[str, Sequence[float]], score: Score) -> dict[str, list[float]]:
    """Gains where each matrix's losses are in a unit of its own: what it costs the model to have one term of it sets that unit."""
    whole = {name: len(path) for name, path in losses.items()}
    best = score(whole)
    fall = {name: path[0] - path[-1] for name, path in losses.items()}
    units = {name: (score({**whole, name: 1}) - best) / fall[name] for name in losses if fall[name]}
    return {name: [units.get(name, 0.0) * gain for gain in more] for name, more in falls(losses).items()}


def measured(terms: Mapping[str, int], score: Score) -> dict[str, list[float]]:
    """Gains as the paper measures them: at every level, each matrix alone gets one term more. `terms`: how many each has in all."""
    gains: dict[str, list[float]] = {name: [] for name in terms}
    for level in range(1, max(terms.values())):
        here = {name: min(level, most) for name, most in terms.items()}
        before = score(here)
        for name, most in terms.items():
            if level < most:
                gains[name].append(before - score({**here, name: level + 1}))
    return gains


def finite(gains: Gains) -> dict[str, list[float]]:
    """A level with a gain that is no finite number takes the gains of the next; the last one, where it has one, gains nothing."""
    told = {name: list(more) for name, more in gains.items()}
    for at in reversed(range(max((len(more) for more in told.values()), default=0))):
        here = {name: more for name, more in told.items() if at < len(more)}
        if not all(isfinite(more[at]) for more in here.values()):
            for more in here.values():
                more[at] = more[at + 1] if at + 1 < len(more) else 0.0
    return told
