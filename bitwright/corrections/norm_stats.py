"""Norm statistics: the batch norms that were folded into convolutions are estimated afresh on the compressed model (AdaQuant,
arXiv 2006.10518, section 3; card: adaquant).

    y' = (y - m) / sqrt(v + eps) sqrt(v_f + eps) + m_f      m_f, v_f: mean and variance of each output channel in the float model

m, v are those of the compressed model behind the convolutions already corrected: an identity norm is put behind every convolution
of the blocks, set to what it sees, and folded again. All images walk block by block, so that a convolution costs one more pass
through its block. No gradients. A row whose groups have float parameters of their own takes the factor in these; where a factor has
no such place (other terms, shared scales, float weights) the mean alone is set. Differs from the paper: exact moments of all images
for averages over batches, and targets measured for gamma and beta, which a folded network no longer has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitwright.calibrate.stream import Rows, embed, run
from bitwright.coded import CodedConv
from bitwright.corrections.finish import Both
from bitwright.terms.coded import Coded
from bitwright.training.live import moves, narrowed
from bitwright.training.scopes import Replaced
from bitwright.wiring import Wiring

CONVS = (nn.Conv1d, nn.Conv2d, CodedConv)


@dataclass(frozen=True)
class NormStatistics:
    """`eps` as in the batch norm."""

    eps: float = 1e-5

    def refusal(self, model: nn.Module, wiring: Wiring) -> str | None:
        found = convs(wiring.block_list(model))
        if not found:
            return "The blocks of this model have no batch norms, and other norms keep no statistics; leave norm statistics out."
        if without := [name for name, conv in found.items() if conv._parameters.get("bias") is None]:
            return f"{wiring.blocks}.{without[0]} has no bias that could hold its mean; leave norm statistics out."
        return None

    def __call__(self, both: Both) -> tuple[Mapping[str, Tensor], str]:
        found, count, scaled = dict[str, Tensor](), 0, 0
        theirs, ours = entering(both.theirs, both), entering(both.ours, both)
        pairs = zip(both.wiring.block_list(both.theirs), both.wiring.block_list(both.ours), strict=True)
        for i, (float_block, block) in enumerate(pairs):
            goals, changed = met(float_block, convs(float_block), theirs, i), dict[str, Tensor]()
            for name, goal in goals.items():
                conv: Any = block.get_submodule(name)
                now = met(Replaced(block, changed), {name: conv}, ours, i)[name]
                leaves = lengths(conv)
                factor = ((goal.variance + self.eps) / (now.variance + self.eps)).sqrt() if leaves else torch.ones_like(now.mean)
                moved = {"bias": (factor * conv.bias + goal.mean - factor * now.mean).float()}
                moved |= {n: narrowed(t.float() * factor[:, None].float(), t.dtype) for n, t in leaves.items()}
                changed |= both.as_stored({f"{name}.{n}": t for n, t in moved.items()}, f"{both.wiring.blocks}.{i}.")
                count, scaled = count + 1, scaled + bool(leaves)
            for rows, through in ((theirs, float_block), (ours, Replaced(block, changed))):
                for r in rows:
                    r.hidden = run(through, r.hidden, r.calls[i])
            found |= {f"{both.wiring.blocks}.{i}.{n}": t for n, t in changed.items()}
        return found, f"means of {count} convolutions set, spreads of {scaled}"


def convs(module: nn.Module) -> dict[str, Any]:
    return {name: child for name, child in module.named_modules() if isinstance(child, CONVS)}


def entering(model: Any, both: Both) -> list[Rows]:
    inputs, blocks = torch.cat(list(both.batches)), both.wiring.block_list(model)
    return embed(model.base_model, blocks, inputs, len(both.batches[0]), False, both.wiring.call)


def lengths(conv: nn.Module) -> dict[str, Tensor]:
    """The stored float parameters of groups, [out, groups in a row] each, by name below the convolution, where multiplying all of a
    row by a number does that to the row; none where it does not."""
    found: dict[str, Tensor] = {}
    for i, held in enumerate(getattr(conv, "terms", ())):
        term = held.term()
        if not isinstance(term, Coded) or term.layout.block(term.shape)[0] != 1:
            return {}
        floats = {n for n, leaf in term.grid.leaves.items() if moves(leaf)}
        if not floats or any(term.grid.leaves[n].shared != 1 for n in floats):
            return {}
        found |= {f"terms.{i}.{n}": getattr(held, n) for n in floats}
    return found


@dataclass(eq=False)
class Tally:
    """Mean and variance of every output channel over images and places, fp64."""

    count: int = 0
    sum: Float[Tensor, "out"] | float = 0.0
    squares: Float[Tensor, "out"] | float = 0.0

    def add(self, y: Float[Tensor, "n out *places"]) -> None:
        flat = y.double().transpose(0, 1).flatten(1)
        self.count += flat.shape[1]
        self.sum, self.squares = self.sum + flat.sum(1), self.squares + flat.square().sum(1)

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.sum) / self.count

    @property
    def variance(self) -> Tensor:
        return (torch.as_tensor(self.squares) / self.count - self.mean.square()).clamp_min(0)


def met(block: Callable[..., Any], found: Mapping[str, nn.Module], rows: Sequence[Rows], number: int) -> dict[str, Tally]:
    """What these convolutions of a block give for the rows that enter it, in the order in which they are called."""
    tallies: dict[str, Tally] = {}

    def see(name: str, module: nn.Module, args: Any, y: Tensor) -> None:
        tallies.setdefault(name, Tally()).add(y)

    handles = [module.register_forward_hook(partial(see, name)) for name, module in found.items()]
    try:
        for r in rows:
            run(block, r.hidden, r.calls[number])
    finally:
        for handle in handles:
            handle.remove()
    return tallies
