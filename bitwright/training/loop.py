"""The loop that every trained rounding shares: draw a batch, step, settle, judge what would be stored, keep the best.

    min over variables   loss(W^(variables); batch) + pull(variables, share of the steps done)

A variable is one matrix while it is trained: a differentiable weight, and at any moment the terms that would be stored. The loop
never believes the first: held-out losses are those of the second, the start takes part, and the best is returned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.terms.base import Terms
from bitwright.training.optimizers import OPTIMIZERS
from bitwright.training.problem import Problem


@runtime_checkable
class Variable(Protocol):
    def groups(self) -> list[dict[str, Any]]:
        """What the optimizer moves: [{"params": [...], "lr": ...}], with options of the optimizer where it needs others."""

    def weight(self) -> Float[Tensor, "out inp"]:
        """The matrix as the loss sees it now, differentiable."""

    def pull(self, done: float) -> Tensor | None:
        """What is added to the loss when this share of the steps is done; None where nothing is."""

    def settle(self, done: float) -> None:
        """After every step: projections, commitments, new codes."""

    def terms(self) -> Terms:
        """What would be stored now."""


@dataclass(frozen=True)
class Training:
    """`steps` of the optimizer, one batch each; after a linear rise over the share `warm`, rates fall to 0 by a cosine or stay.
    Judged `checks` times; `keep`: the best of them (the start included), or the last."""

    steps: int = 400
    optimizer: Literal["adam", "sgd", "adamax", "sign", "rmsprop", "lamb"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    warm: float = 0.0
    checks: int = 8
    keep: Literal["best", "last"] = "best"
    seed: int = 0


def train(problem: Problem, variables: Mapping[str, Variable], how: Training) -> dict[str, Terms]:
    """The terms of every matrix. Notes in the problem what was gained, or that nothing was."""
    groups = [group for v in variables.values() for group in v.groups()]
    ranges = problem.inputs.values()
    optimizer = OPTIMIZERS[how.optimizer](groups + [group for one in ranges for group in one.groups])
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(how, step / max(how.steps, 1)))
    start = {name: subject.start for name, subject in problem.subjects.items()}
    first = least = problem.first
    best, when, bounds = dict(start), 0, [one.now() for one in ranges]
    order = batches(problem.batches, how)
    for step in range(1, how.steps + 1):
        done = step / how.steps
        with torch.enable_grad():
            loss = problem.loss({name: v.weight() for name, v in variables.items()}, order[step - 1])
            loss = sum((pull for v in variables.values() if (pull := v.pull(done)) is not None), start=loss)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
        rates.step()
        with torch.no_grad():
            for v in variables.values():
                v.settle(done)
            if checked(how, step):
                now = {name: v.terms() for name, v in variables.items()}
                judged = problem.judged(now)
                if judged < least or (how.keep == "last" and step == how.steps):
                    best, least, when, bounds = now, judged, step, [one.now() for one in ranges]
    for one, kept in zip(ranges, bounds):
        one.back(kept)
    gained = f"held-out loss {first:.4g} -> {least:.4g}"
    problem.note(
        f"trained {how.steps} steps: {gained}, at step {when}" if when else f"{how.steps} steps did not help: the start is kept"
    )
    return best


def checked(how: Training, step: int) -> bool:
    """Whether what would be stored is judged after this step (from 1)."""
    return step == how.steps or step * how.checks // how.steps > (step - 1) * how.checks // how.steps


def rate(how: Training, done: float) -> float:
    """The factor of all learning rates."""
    if done < how.warm:
        return (done + 1 / max(how.steps, 1)) / how.warm
    return 1.0 if how.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * (done - how.warm) / (1 - how.warm)))


def batches(count: int, how: Training) -> Sequence[int]:
    """Which batch every step takes: all of them in a new order, again and again."""
    dice = torch.Generator().manual_seed(how.seed)
    rounds = -(-how.steps // count)
    found: list[int] = torch.cat([torch.randperm(count, generator=dice) for _ in range(rounds)]).tolist() if how.steps else []
    return found
