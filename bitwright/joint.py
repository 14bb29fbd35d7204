"""Joint: where the road and a joint rounding meet. A block, or the whole model, becomes a problem; its terms come back, and what is
reported of every matrix is what they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.activations.static import Static
from bitwright.calibrate.stats import Known
from bitwright.calibrate.stream import Rows, run
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.base import Params
from bitwright.matrix import lost
from bitwright.plan import Plan
from bitwright.report import Row
from bitwright.rounding.base import JointRounding
from bitwright.sites import Site
from bitwright.terms.base import Json, Terms, decode, stored_bits
from bitwright.training.inputs import Inputs
from bitwright.training.problem import Problem, Subject
from bitwright.training.scopes import Block, Layer, Model, Standing


def of_block(plan: Plan) -> tuple[JointRounding, ...]:
    """Those that are solved while the road stands at a block."""
    return tuple(j for j in plan.recipe.joint if isinstance(j.scope, Block | Layer))


def of_model(plan: Plan) -> tuple[JointRounding, ...]:
    return tuple(j for j in plan.recipe.joint if isinstance(j.scope, Model))


def trainable(plan: Plan, names: Sequence[str]) -> list[str]:
    """Matrices whose own recipe is joint: a rule may give others a rounding of their own."""
    return [name for name in names if plan.sites[name].recipe.joint]


def train_block(
    joints: Sequence[JointRounding],
    plan: Plan,
    block: nn.Module,
    here: Mapping[str, Site],
    before: Sequence[Rows],
    stream: Sequence[Rows],
    number: int,
    weights: Mapping[str, Tensor],
    terms: Mapping[str, Terms],
    known: Mapping[str, Known],
    scales: Mapping[str, Params],
) -> tuple[dict[str, Terms], dict[str, Params], dict[str, list[str]]]:
    """The terms of a block after training, what is stored of inputs, and what is to be said of each matrix. The rows in `stream`
    are pushed through it afresh.

    `before`: the rows as they entered; `weights`: the float matrices; `terms`: what the start stored."""
    names = trainable(plan, list(terms))
    if not names:
        return dict(terms), dict(scales), {}
    inputs = {name: part for name in names if (part := plan.sites[name].inputs) is not None}
    online = {
        name: Inputs(part, scales.get(name, {}), known[name][part.needs[0]] if part.needs else None)
        for name, part in inputs.items()
        if here[name].patches is None or isinstance(part, Static)
    }
    found, notes = dict(terms), {name: list[str]() for name in names}
    if len(online) < len(inputs) and any(getattr(joint.scope, "online", False) for joint in joints):
        for told in notes.values():
            told.append("inputs of convolutions are not quantized while training")
    after = [r.teacher for r in stream if r.teacher is not None]
    at = Standing(block, number, {n: here[n] for n in names}, before, after, online)
    for joint in joints:
        scope: Any = joint.scope
        subjects = {name: Subject(weights[name], found[name], known[name]) for name in names}
        for problem in scope.problems(at, subjects):
            solved = joint.solve(problem)
            found |= solved
            for name in solved:
                here[name].put(decode(found[name]))
                notes[name] += problem.notes
    with torch.no_grad():
        for r, entered in zip(stream, before):
            r.hidden = run(block, entered.hidden, entered.calls[number])
    return found, {**scales, **{name: one.stored() for name, one in online.items() if one.part.needs}}, notes


def train_model(
    joints: Sequence[JointRounding],
    plan: Plan,
    model: nn.Module,
    sites: Mapping[str, Site],
    batches: Sequence[Tensor],
    terms: Mapping[str, Terms],
) -> tuple[dict[str, Terms], list[str]]:
    """The terms of all matrices after training. `model` holds the float weights."""
    names = trainable(plan, list(terms))
    if not names:
        raise BadRequest("The rules leave nothing to a rounding of the whole model; let it have some layers.")
    found, notes = dict(terms), list[str]()
    for joint in joints:
        scope: Any = joint.scope
        subjects = {name: Subject(sites[name].matrix().clone(), found[name], Known()) for name in names}
        problem: Problem = scope.problem(model, {n: sites[n] for n in names}, batches, plan.wiring.call, subjects)
        found |= joint.solve(problem)
        notes += problem.notes
    return found, notes


def after_training(
    row: Row, W: Tensor, before: Sequence[Mapping[str, Json]], terms: Terms, known: Known, notes: Sequence[str]
) -> Row:
    """The line of the report of a matrix whose terms have changed; `before`: the metas of those it had."""
    H, metas = known.values.get("gram"), [t.meta() for t in terms]
    error, energy = float(lost(W - decode(terms), H).sum()), float(lost(W, H).sum()) or 1.0
    bits = row.bits + stored_bits(tuple(metas)) - stored_bits(tuple(before))
    return replace(row, bits=bits, error=error / energy, terms=tuple(m["kind"] for m in metas), notes=(*row.notes, *notes))


def by_weights(row: Row, W: Tensor, bands: Sequence[Band]) -> Row:
    """The line of a matrix whose inputs are no longer known, with nearest rounding measured as its error now is: by weights."""
    plain = decode(Coder.fit(W, bands).terms(W))
    return replace(row, measure="weights", nearest=float(lost(W - plain, None).sum()) / (float(lost(W, None).sum()) or 1.0))
