"""Probes: what every choice of every unit loses, as a table [units, choices]. Solvers read the table and nothing else.

    gram      sum_i r_i              r_i = (E H E^T)_ii, the squared error of output i per token: layers are not comparable
    fisher    1/2 sum_i f_i r_i      f_i = E[g_i^2], g the gradient of -log p(y), y drawn by the model: nats of KL per token
    divergence                       the KL of the model in which this unit alone is compressed, on a few windows
    anchored  fisher's curve of each unit, scaled to the KL measured at one of its choices

fisher is the second-order expansion of KL with a Kronecker-factored, diagonal Fisher matrix (Martens and Grosse, 2015): exact in
the limit of small errors that are independent from token to token. One backward pass gives it for all choices; divergence takes a
forward pass for every entry, anchored one for every unit. Sources: cards adaquant, mixdq, baq; PEERS section 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-9  # nats: a measured loss of nothing or less is noise, and noise must not be bought


@runtime_checkable
class Candidates(Protocol):
    """Every choice of every unit, already rounded, and the model they belong to."""

    @property
    def size(self) -> tuple[int, int]:
        """Units, choices."""

    def possible(self, unit: int, choice: int) -> bool: ...

    def errors(self, unit: int, choice: int) -> list[Float[Tensor, "out"]]:
        """Squared errors of the outputs of each matrix of the unit, per token."""

    def gradients(self, unit: int) -> list[Float[Tensor, "out"]]:
        """Second moments of the gradients at the outputs of each matrix of the unit, per token."""

    def divergence(self, chosen: Mapping[int, int]) -> float:
        """KL per token of the float model with these units compressed by these choices."""


@runtime_checkable
class Probe(Protocol):
    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics of a matrix that it reads, beyond those of its rounding."""

    def __call__(self, candidates: Candidates) -> Float[Tensor, "u c"]: ...


@dataclass(frozen=True)
class GramError:
    needs = ()

    def __call__(self, candidates: Candidates) -> Float[Tensor, "u c"]:
        return table(candidates, lambda u, c: sum(float(r.sum()) for r in candidates.errors(u, c)))


@dataclass(frozen=True)
class Fisher:
    needs = ("output-gradient",)

    def __call__(self, candidates: Candidates) -> Float[Tensor, "u c"]:
        def nats(u: int, c: int) -> float:
            return 0.5 * sum(float(f.double() @ r.double()) for f, r in zip(candidates.gradients(u), candidates.errors(u, c)))

        return table(candidates, nats)


@dataclass(frozen=True)
class Divergence:
    needs = ()

    def __call__(self, candidates: Candidates) -> Float[Tensor, "u c"]:
        return table(candidates, lambda u, c: candidates.divergence({u: c}))


@dataclass(frozen=True)
class Anchored:
    """`at`: the quantile of a unit's fisher losses at whose choice the KL is measured (0: the best choice, 1: the worst)."""

    at: float = 0.7
    needs = Fisher.needs

    def __call__(self, candidates: Candidates) -> Float[Tensor, "u c"]:
        curve = Fisher()(candidates)
        for unit, row in enumerate(curve):
            free = torch.isfinite(row).nonzero()[:, 0]
            order = free[row[free].argsort()]
            choice = int(order[round(self.at * (len(order) - 1))])
            curve[unit] *= max(candidates.divergence({unit: choice}), FLOOR) / max(float(row[choice]), FLOOR)
        return curve


def table(candidates: Candidates, entry: Callable[[int, int], float]) -> Float[Tensor, "u c"]:
    """Every possible entry, floored; infinity elsewhere."""
    units, choices = candidates.size
    found = torch.full((units, choices), torch.inf, dtype=torch.float64)
    for u in range(units):
        for c in range(choices):
            if candidates.possible(u, c):
                found[u, c] = max(entry(u, c), FLOOR)
    return found
