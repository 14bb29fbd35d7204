"""Combinations of rounding, grid, layout and corrections: what the plan lets by runs, stores what was foretold and is not worse
than nearest; what it does not is refused in one sentence, before a weight is read.

Every rounding meets every grid, and every layout with every correction; not every four of them meet.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from matrices import INP, OUT, known, loss
from torch import nn
from variants import joints, label, parts, variants

from bitwright import index
from bitwright.coder import Coder
from bitwright.corrections.lorc import Lorc
from bitwright.corrections.outliers import Outliers
from bitwright.errors import BadRequest
from bitwright.export.native import Native
from bitwright.layout import Layout
from bitwright.matrix import compress_matrix
from bitwright.plan import Planned, plan_site
from bitwright.recipe import Recipe
from bitwright.rounding.adaround import AdaRound
from bitwright.rounding.base import JointRounding
from bitwright.rounding.bitstack import BitStack
from bitwright.rounding.layerwise import Layerwise
from bitwright.rounding.residual import Residual
from bitwright.sites import Site

SITE = Site("layer", nn.Linear(INP, OUT, bias=False))
LAYOUTS = [Layout(None, None), Layout(1, None), Layout(None, 1), Layout(1, 16), Layout(4, 8), Layout(1, 128)]
CORRECTIONS = [(), (Lorc(2),), (Outliers(0.05),), (Outliers(0.05, by_output=True), Lorc(2, whiten=False))]
EACH = 8  # one in so many of the layouts with corrections, another for every grid

KINDS = {type(r): r for r in reversed(variants("rounding"))}  # the first variant of each
ALL = [*KINDS.values(), index.resolve("rounding", "ggml")(), *joints(fixed=False, steps=2)]


def planned(recipe: Recipe) -> Planned:
    found = plan_site("layer", SITE, recipe, False, Native())
    assert found is not None
    return found


def is_one_sentence(words: str) -> bool:
    return words.endswith(".") and "\n" not in words and re.search(r"[.!?] [A-Z]", words) is None


def combined(rounding: Any) -> Iterator[Recipe]:
    shift = ALL.index(rounding)
    for g, grid in enumerate(variants("grids", few=True)):
        for i, (layout, corrections) in enumerate(product(LAYOUTS, CORRECTIONS)):
            if (i + shift + 5 * g) % EACH == 0:
                yield Recipe(grid, layout, rounding, corrections=corrections)


def test_every_rounding_and_every_joint_one_of_the_index_takes_part() -> None:
    assert {type(r) for r in ALL} == {*parts("rounding").values(), *parts("joint").values()}
    assert {type(g) for g in variants("grids", few=True)} == set(parts("grids").values())
    met = [(r.layout, r.corrections) for r in combined(ALL[0])]
    assert all(pair in met for pair in product(LAYOUTS, CORRECTIONS))


@pytest.mark.parametrize("rounding", ALL, ids=lambda r: index.name_of(type(r)))
def test_what_is_legal_runs_and_what_is_not_is_refused_in_one_sentence(rounding: Any, problem: Any) -> None:
    W, H = problem(OUT, INP)
    faults, ratios = [], []
    for recipe in combined(rounding):
        told = ", ".join(map(label, (recipe.grid, recipe.layout, recipe.corrections)))
        try:
            plan = planned(recipe)
        except BadRequest as refusal:
            if not is_one_sentence(str(refusal)):
                faults.append(f"{told}: refused in other words than one sentence: {refusal}")
            continue
        try:
            terms, plain = compress_matrix(W, plan, known(H))
            if [t.meta() for t in terms] != [dict(m) for m in plan.metas]:
                faults.append(f"{told}: stores other terms than were foretold")
            if isinstance(rounding, JointRounding):
                start, coder = terms, Coder.fit(W, plan.bands, H.diagonal())
                terms = Layerwise(rounding)(W, coder, known(H), start)
        except Exception as error:  # whatever it is, it came too late
            faults.append(f"{told}: {type(error).__name__}: {error}")
            continue
        ratios.append(loss(W, terms, H) / loss(W, plain, H))
    assert not faults, "\n".join(faults)
    assert all(ratio == ratio for ratio in ratios)
    if ratios:  # nothing on this matrix: GPTQ has no guarantee, yet is hardly ever worse
        worse = sum(ratio > 1 + 1e-5 for ratio in ratios)
        assert worse <= (0.05 * len(ratios) if not isinstance(rounding, JointRounding) else 0), sorted(ratios)[-5:]


@pytest.mark.parametrize("start", [BitStack(2), Residual(2)], ids=["signs", "twice the same columns"])
def test_a_start_that_cannot_be_trained_is_refused_by_the_plan(start: Any) -> None:
    with pytest.raises(BadRequest, match="start it from another") as refusal:
        planned(Recipe(rounding=AdaRound(start=start), layout=Layout(1, 16)))
    assert is_one_sentence(str(refusal.value))


def test_a_layout_that_does_not_tile_is_refused_only_where_that_was_asked() -> None:
    with torch.no_grad(), pytest.raises(BadRequest, match="--strict") as refusal:
        plan_site("layer", SITE, Recipe(layout=Layout(1, 20)), True, Native())
    assert is_one_sentence(str(refusal.value))
    assert planned(Recipe(layout=Layout(1, 20))).note
