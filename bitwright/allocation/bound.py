"""Bound: the smallest model whose loss stays under a bound, by measuring few of the models that a solver proposes.

    min budget   subject to   measure(solve(budget)) <= bound

A bracket of budgets, below which the bound is broken and above which it holds, shrinks until it is one smallest step wide. The
next budget to try is where the foretold loss, times what the last model measured over what was foretold of it, meets the bound;
every third try halves the bracket, whatever the forecast says. Equal proposals are measured once. Six to ten measurements for
what a search over foretold losses alone would get wrong by the error of the forecast.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bitwright.errors import BadRequest

TRIES = 14


@dataclass(frozen=True)
class Proposal:
    """`name`: equal for equal models."""

    name: tuple[int, ...]
    bits: int
    foretold: float


def smallest(
    solve: Callable[[int], Proposal], measure: Callable[[Proposal], float], low: int, high: int, step: int, bound: float
) -> Proposal:
    """The smallest proposal between budgets `low` and `high` that measures at most `bound`. Raises BadRequest where none does."""
    known: dict[tuple[int, ...], float] = {}

    def measured(p: Proposal) -> float:
        if p.name not in known:
            known[p.name] = measure(p)
        return known[p.name]

    best, first = solve(high), solve(low)
    if (least := measured(best)) > bound:
        raise BadRequest(f"The best model of the menu has a KL of {least:.4g}, above the bound of {bound:g}; raise it or the menu.")
    if measured(first) <= bound:
        return first
    low, high, ratio = first.bits, best.bits, least / best.foretold
    for i in range(TRIES):
        if high - low <= max(step, 1):
            break
        middle = (low + high) // 2
        at = middle if i % 3 == 2 else min(max(where(solve, ratio, low, high, step, bound), low + 1), high - 1)
        p = solve(at)
        if p.bits <= low:  # nothing lies between
            low = at
            continue
        ratio = measured(p) / p.foretold
        if measured(p) <= bound:
            best, high = p, p.bits
        else:
            low = p.bits
    return best


def where(solve: Callable[[int], Proposal], ratio: float, low: int, high: int, step: int, bound: float) -> int:
    """The least budget whose foretold loss, corrected, meets the bound."""
    while high - low > max(step, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if solve(middle).foretold * ratio <= bound else (middle, high)
    return high
