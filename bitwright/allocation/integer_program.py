"""Integer program: the exact optimum over all choices, by branch and bound (HiGHS, through scipy).

    min sum_uc x_uc loss_uc   subject to   sum_c x_uc = 1,   floor <= sum_uc x_uc price_uc <= budget,   x in {0, 1}

first with floor = 0. Where that leaves more than one smallest step between prices unspent, again with a floor of the budget less
that step; its result is taken if it loses at most a share `slack` more, since the bits were asked for. Sums of a result are
checked in integers, as the solver's are floats. Cards adaquant (section 2), mixdq. Milliseconds for hundreds of units.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import legal, step, topped_up, total
from bitwright.allocation.probes import Fisher, Probe
from bitwright.allocation.water_level import WaterLevel


@dataclass(frozen=True)
class IntegerProgram:
    """`seconds`: after which the best found so far is taken."""

    probe: Probe = Fisher()
    slack: float = 0.01
    seconds: float = 30.0

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        found = [self.solve(loss, price, budget, 0), WaterLevel()(loss, price, budget)]
        sound = [c for c in found if c is not None and total(price, c) <= budget]
        best = topped_up(loss, price, budget, min(sound, key=lambda c: total(loss, c)))
        floor = budget - step(loss, price) + 1
        if total(price, best) < floor:
            full = self.solve(loss, price, budget, floor)
            kept = full is not None and floor <= total(price, full) <= budget
            if full is not None and kept and total(loss, full) <= (1 + self.slack) * total(loss, best):
                return full
        return best

    def solve(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int, floor: int) -> Ints[Tensor, "u"] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        units, choices = loss.shape
        free = legal(loss)
        unit = int(np.gcd.reduce(price[free].numpy())) or 1
        cost = np.where(free, loss.double() / float(loss[free].abs().max().clamp_min(1e-300)), 0.0).ravel()
        one = csr_array(np.kron(np.eye(units), np.ones(choices)))
        prices = np.where(free, price // unit, 0).reshape(1, -1).astype(float)
        done = milp(
            cost,
            constraints=[LinearConstraint(one, 1, 1), LinearConstraint(prices, -(-floor // unit), budget // unit)],
            bounds=Bounds(0, free.numpy().ravel().astype(float)),
            integrality=np.ones(units * choices),
            options={"time_limit": self.seconds, "mip_rel_gap": 0.0},
        )
        return None if done.x is None else torch.from_numpy(done.x.reshape(units, choices).argmax(1))
