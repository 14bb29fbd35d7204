"""Trained roundings on the very same blocks: one walk through zoo:lm; every method solves every problem, the start goes on.

errors[method][block]   the held-out loss of what it stores (start: nearest rounding);   trained: on the batches it saw;
moved: the share of codes that differ from the start's
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import bitwright
from bitwright import index
from bitwright.coder import Coder
from bitwright.grids.base import Grid
from bitwright.layout import Layout
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Terms
from bitwright.terms.coded import Coded
from bitwright.training.problem import Problem
from bitwright.training.scopes import Block, Scope


@dataclass(eq=False)
class Results:
    methods: Mapping[str, Any]
    errors: dict[str, list[float]] = field(default_factory=dict)
    trained: dict[str, list[float]] = field(default_factory=dict)
    moved: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, problem: Problem, found: Mapping[str, Terms]) -> None:
        self.errors.setdefault(name, []).append(problem.judged(found))
        self.trained.setdefault(name, []).append(replace(problem, held=0).judged(found))
        self.moved.setdefault(name, []).append(moved(problem, found))
        self.notes.setdefault(name, []).extend(problem.notes)
        problem.notes.clear()


RUNNING: list[Results] = []  # a recipe is plain values; what is written down is not part of it


@dataclass(frozen=True)
class Contest:
    """A joint rounding that stores its start, and writes down what others would have reached."""

    start: Rounding = Nearest()
    scope: Scope = Block()

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        for name, method in {"start": self.start, **RUNNING[-1].methods}.items():
            found = method.solve(problem) if hasattr(method, "solve") else each(method, problem)
            RUNNING[-1].add(name, problem, found)
        return {name: subject.start for name, subject in problem.subjects.items()}


def moved(problem: Problem, found: Mapping[str, Terms]) -> float:
    """The share of codes that are not the start's."""
    pairs = [(a.codes, b.codes) for n, s in problem.subjects.items() for a, b in zip(s.start, found[n]) if isinstance(a, Coded)]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def each(method: Rounding, problem: Problem) -> Mapping[str, Terms]:
    """A rounding of single matrices on the subjects of a problem, on their own grids."""
    found: dict[str, Terms] = {}
    for name, s in problem.subjects.items():
        coder = s.coder
        found[name] = method(s.W, Coder(coder.shape, coder.bands, coder.params), s.known)
    return found


def contest(
    methods: Mapping[str, Any], grid: Grid, layout: Layout, samples: int, blocks: int = 6, start: Callable[[], Rounding] = Nearest
) -> Results:
    """Over the first `blocks` of zoo:lm."""
    rules = tuple(Rule(rf"re:model\.layers\.{i}\..*", ignore=True) for i in range(blocks, 6))
    recipe = Recipe(grid, layout, Contest(start()), rules=rules, name="contest")
    RUNNING.append(Results(methods))
    index.PARTS["joint"]["contest"] = "contest:Contest"
    try:
        bitwright.compress("zoo:lm", recipe, bitwright.calibration("zoo:lm", samples=samples), device="auto")
    finally:
        del index.PARTS["joint"]["contest"]
    return RUNNING.pop()
