"""Finishing: the steps of a recipe over the compressed model, each kept only where held-out calibration rows say so.

    KL(float || compressed) after a step  <=  before it,   in the precision of the file

A step sees all rows but the held-out ones. Holds both models in fp32.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitwright import index
from bitwright.checkpoint import Checkpoint, whole
from bitwright.corrections.finish import Both
from bitwright.export import native
from bitwright.plan import Plan
from bitwright.terms.base import Json
from bitwright.training.scopes import shares

HELD = 0.125  # share of the batches that steps are judged by


def finish(
    plan: Plan,
    source: Checkpoint,
    stored: Mapping[str, Tensor],
    metas: Mapping[str, Sequence[Mapping[str, Json]]],
    batches: Sequence[Tensor],
    device: torch.device,
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that have changed, in their stored types, and a line for the report on every step of the recipe. `stored`: all
    tensors of the compressed model. Raises BadRequest where there are too few batches to hold one back."""
    from bitwright.loading import assemble

    fields = native.quantization_config(metas, plan.tied_head, plan.inputs)
    ours = assemble(source.config, {n: t.clone() for n, t in stored.items()}, fields).to(device)
    count, _ = shares(len(batches), HELD)
    types = {n: t.dtype for n, t in stored.items()}
    both = Both(whole(source).to(device), ours, batches[:count], batches[count:], plan.wiring, types)
    found, notes = dict[str, Tensor](), list[str]()
    before, own = both.judged({}), ours.state_dict()
    for step in plan.recipe.after:
        changed, told = step(both)
        held = {n: own[n].clone() for n in changed}
        put(own, both.as_stored(changed))
        after = both.judged({})
        kept = after <= before
        ending = "" if kept else ": worse, so the step was dropped"
        name = index.name_of(type(step))
        notes.append(f"{name}: {told}; KL on held-out calibration rows {before:.4g} -> {after:.4g}{ending}")
        if kept:
            found |= {n: own[n].to(types[n]).cpu() for n in changed}
            before = after
        else:
            put(own, held)
    return found, notes


def put(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """In place: modules notice that they must decode again."""
    for name, value in values.items():
        own[name].copy_(value)
