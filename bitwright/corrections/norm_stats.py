"""Norm statistics: the batch norms that were folded into convolutions are estimated afresh on the compressed model (AdaQuant,
arXiv 2006.10518, section 3; card: adaquant).

    y' = (y - m) / sqrt(v + eps) sqrt(v_f + eps) + m_f      m_f, v_f: mean and variance of each output channel in the float model

m, v are those of the compressed model behind the convolutions already corrected: an identity norm is put behind every convolution,
set to what it sees, and folded again. All images stop at a convolution until its statistics are complete, so one pass serves all.
No gradients. A row whose groups have float parameters of their own takes the factor in these; where a factor has no such place
(other terms, shared scales, float weights) the mean alone is set. Differs from the paper: exact moments of all images for averages
over batches, and targets measured for gamma and beta, which a folded network no longer has.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Float
from torch import Tensor, nn

from bitwright.coded import CodedConv
from bitwright.corrections.finish import Both
from bitwright.terms.coded import Coded
from bitwright.training.live import moves, narrowed

CONVS = (nn.Conv1d, nn.Conv2d, CodedConv)
Moments = tuple[Float[Tensor, "out"], Float[Tensor, "out"]]


@dataclass(frozen=True)
class NormStatistics:
    """`eps` as in the batch norm."""

    eps: float = 1e-5

    def refusal(self, model: nn.Module, head: str) -> str | None:
        found = convs(model)
        if len(found) < 2:  # one: what cuts an image into patches
            return "This model has no batch norms: LayerNorm and RMSNorm keep no statistics; leave them out of the recipe."
        if without := [name for name, conv in found.items() if conv._parameters.get("bias") is None]:
            return f"{without[0]} has no bias that could hold its mean; leave norm statistics out of the recipe."
        return None

    def __call__(self, both: Both) -> tuple[Mapping[str, Tensor], str]:
        goals, changed, scaled = met(both.theirs, both), dict[str, Tensor](), 0
        lanes = [greenlet(partial(both.ours, x, **both.call)) for x in both.batches]
        with stopping(convs(both.ours)):
            waiting = [lane.switch() for lane in lanes]
            while not lanes[0].dead:
                name, seen = waiting[0][0], [y for _, y in waiting]
                (mean, var), (goal, spread) = moments(seen), goals[name]
                factor = ((spread + self.eps) / (var + self.eps)).sqrt()
                leaves = lengths(both.ours.get_submodule(name), name)
                factor = factor if leaves else torch.ones_like(factor)
                scaled += bool(leaves)
                shift = goal - factor * mean
                bias: Any = both.ours.get_submodule(name).bias
                changed[f"{name}.bias"] = (factor * bias + shift).float()
                changed |= {n: narrowed(t.float() * factor[:, None].float(), t.dtype) for n, t in leaves.items()}
                waiting = [lane.switch(applied(y, factor, shift)) for lane, y in zip(lanes, seen)]
        return changed, f"means of {len(goals)} convolutions set, spreads of {scaled}"


def convs(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, CONVS)}


def lengths(conv: nn.Module, name: str) -> dict[str, Tensor]:
    """The stored float parameters of groups, [out, groups in a row] each, where multiplying all of a row by a number does that to
    the row; none where it does not."""
    found: dict[str, Tensor] = {}
    for i, held in enumerate(getattr(conv, "terms", ())):
        term = held.term()
        if not isinstance(term, Coded) or term.layout.block(term.shape)[0] != 1:
            return {}
        floats = {n for n, leaf in term.grid.leaves.items() if moves(leaf)}
        if not floats or any(term.grid.leaves[n].shared != 1 for n in floats):
            return {}
        found |= {f"{name}.terms.{i}.{n}": getattr(held, n) for n in floats}
    return found


@contextmanager
def stopping(found: Mapping[str, nn.Module]) -> Iterator[None]:
    """The lanes of a pass stop with the name and the output of each of these modules, and go on with what they are given for it."""
    home = getcurrent()

    def stop(name: str) -> Any:
        return lambda module, args, y: home.switch((name, y))

    handles = [module.register_forward_hook(stop(name)) for name, module in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def met(model: nn.Module, both: Both) -> dict[str, Moments]:
    """Mean and variance of every output channel of every convolution."""
    found: dict[str, Moments] = {}
    lanes = [greenlet(partial(model, x, **both.call)) for x in both.batches]
    with stopping(convs(model)):
        waiting = [lane.switch() for lane in lanes]
        while not lanes[0].dead:
            seen = [y for _, y in waiting]
            found[waiting[0][0]] = moments(seen)
            waiting = [lane.switch(y) for lane, y in zip(lanes, seen)]
    return found


def moments(seen: Sequence[Float[Tensor, "n out *places"]]) -> Moments:
    """Over images and places, fp64."""
    flat = [y.double().transpose(0, 1).flatten(1) for y in seen]
    count = sum(y.shape[1] for y in flat)
    mean = torch.stack([y.sum(1) for y in flat]).sum(0) / count
    return mean, torch.stack([(y - mean[:, None]).square().sum(1) for y in flat]).sum(0) / count


def applied(y: Float[Tensor, "n out *places"], factor: Tensor, shift: Tensor) -> Float[Tensor, "n out *places"]:
    shape = (-1, *(1 for _ in y.shape[2:]))
    return y * factor.to(y.dtype).view(shape) + shift.to(y.dtype).view(shape)
