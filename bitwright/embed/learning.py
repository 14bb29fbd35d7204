"""Small networks over vectors, and how those of this room are trained: from where no training would be, the best judged kept.

    min over parameters   loss(rows of a batch),      judged before the first step and `checks` times

`quiet` is nothing at first, so that whatever it is added to starts as the method without training (a projection, k-means, a global
calibration); the best judged state is the one that stays. So what is learned is never worse than what was free, on held-out rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from bitwright.progress import Progress, silent
from bitwright.training.loop import Training, checked, rate
from bitwright.training.optimizers import OPTIMIZERS


@dataclass(frozen=True, eq=False)
class Network:
    """x S^T + relu(x V^T + a) U^T + b"""

    skip: Float32[Tensor, "out inp"]
    inner: Float32[Tensor, "hidden inp"]
    bias: Float32[Tensor, "hidden"]
    outer: Float32[Tensor, "out hidden"]
    shift: Float32[Tensor, "out"]

    @classmethod
    def start(cls, skip: Float32[Tensor, "out inp"], hidden: int, length: float, dice: torch.Generator) -> "Network":
        """The linear map; `length` of its inputs."""
        out, inp = skip.shape
        inner = torch.randn(hidden, inp, generator=dice) / length
        return cls(skip.clone(), inner, torch.zeros(hidden), torch.zeros(out, hidden), torch.zeros(out))

    def __call__(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n out"]:
        return x @ self.skip.T + torch.relu(x @ self.inner.T + self.bias) @ self.outer.T + self.shift

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def quiet(inp: int, hidden: int, out: int, seed: int) -> nn.Sequential:
    """V relu(U x + u) + v, with V and v zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(inp, hidden), nn.ReLU(), nn.Linear(hidden, out))
    for parameter in network[2].parameters():
        nn.init.zeros_(parameter)
    return network


def descend(
    groups: Sequence[dict[str, Any]],
    loss: Callable[[Int64[Tensor, "batch"], int], Tensor],
    judge: Callable[[], float],
    rows: int,
    batch: int,
    how: Training,
    clip: float = math.inf,
    progress: Progress = silent,
) -> tuple[float, float]:
    """Moves the parameters of `groups` ({"params": [...], "lr": ...}) in place, to the best of the states that `judge` has seen.
    `loss` gets the rows of a batch and the number of steps done; every pass over the rows is in a new order. `clip`: the most that
    a gradient may measure. Returns what was judged before and what is now; both are equal where training did not help."""
    held = [p for group in groups for p in group["params"]]
    optimizer = OPTIMIZERS[how.optimizer]([dict(group) for group in groups])
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(how, step / max(how.steps, 1)))
    first = least = judged(judge)
    best = [p.detach().clone() for p in held]
    for step, chosen in enumerate(drawn(rows, batch, how), 1):
        with torch.enable_grad():
            optimizer.zero_grad(set_to_none=True)
            loss(chosen, step - 1).backward()
        nn.utils.clip_grad_norm_(held, clip)
        optimizer.step()
        rates.step()
        if checked(how, step):
            now = judged(judge)
            if now < least or (how.keep == "last" and step == how.steps):
                least, best = now, [p.detach().clone() for p in held]
        progress("training", step, how.steps)
    for p, kept in zip(held, best):
        p.data.copy_(kept)
    return first, least


def judged(judge: Callable[[], float]) -> float:
    with torch.no_grad():
        return judge()


def drawn(rows: int, batch: int, how: Training) -> list[Int64[Tensor, "batch"]]:
    """The rows of every step. Batches are whole; what is left of a pass is dropped."""
    dice, batch = torch.Generator().manual_seed(how.seed), min(batch, rows)
    passes = -(-how.steps // (rows // batch))
    found = [torch.randperm(rows, generator=dice)[: rows // batch * batch].split(batch) for _ in range(passes)]
    return [chosen for one in found for chosen in one][: how.steps]


def split(rows: int, held: float, seed: int) -> tuple[Int64[Tensor, "most"], Int64[Tensor, "few"]]:
    """Rows to learn from, and a share `held` (at least one row) to judge by."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    few = max(1, int(held * rows))
    return order[few:], order[:few]
