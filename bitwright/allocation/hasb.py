"""HASB: widths by Hessian traces, while a nested model is trained and after (arXiv 2502.01199; card: double-rounding).

    while training   layers whose trace is at most the mean draw their width evenly, the others  p_i = b_i / sum b
    after            min over b of  sum_l (t_l / n_l) cost(b_l)   subject to   sum_l n_l b_l <= mean * sum_l n_l

t_l is the trace of the loss's Hessian over the n_l weights of layer l. The paper does not say its cost of a width; ours is 4^-b,
the square of the step, and the mean is over weights, not layers. An integer program: exact, by HiGHS; a thousand choices a second.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest


def chances(trace: Float[Tensor, "l"], widths: Sequence[int]) -> Float[Tensor, "l w"]:
    """With which probability each layer draws each width in a step of training."""
    menu = torch.tensor(widths, dtype=trace.dtype)
    even = torch.full_like(menu, 1 / len(menu))
    return torch.where((trace > trace.mean())[:, None], menu / menu.sum(), even)


def allotted(trace: Float[Tensor, "l"], sizes: Ints[Tensor, "l"], widths: Sequence[int], mean: float) -> Ints[Tensor, "l"]:
    """The width of every layer. Raises BadRequest where even the lowest is above the mean."""
    menu = torch.tensor(widths)
    loss = (trace / sizes).double()[:, None] * 4.0**-menu
    chosen = solve(loss, sizes[:, None] * menu, int(mean * int(sizes.sum()) + 1e-6))
    return menu[chosen]


def solve(loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
    """The choice of every unit with the least sum of losses whose prices add up to at most `budget`."""
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import csr_array

    least = int(price.amin(1).sum())
    if least > budget:
        raise BadRequest(f"The cheapest choices cost {least:,}, more than the budget of {budget:,}; raise it.")
    units, choices = loss.shape
    scaled = (loss / loss.abs().max().clamp_min(1e-300)).double().flatten().numpy()
    one_each = csr_array((np.ones(loss.numel()), np.arange(loss.numel()), np.arange(0, loss.numel() + 1, choices)))
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(price.flatten().numpy()[None].astype(float), -np.inf, budget)]
    found = milp(scaled, integrality=np.ones_like(scaled), bounds=(0, 1), constraints=limits, options={"mip_rel_gap": 0.0})
    if found.x is None:
        raise ArithmeticError(f"the integer program was not solved: {found.message}")
    return torch.from_numpy(found.x).view(units, choices).argmax(1)
