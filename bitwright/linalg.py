"""Linear algebra of a rounding problem, each piece once: the objective, damping, dead inputs, the factor of the inverse.

The layer objective of everything here is  tr(E H E^T)  with E = W - W^ and H = E[x x^T]: the mean squared error of the
layer's output per token, summed over outputs.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def objective(E: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"]) -> float:
    """tr(E H E^T), summed in fp64."""
    return float(((E @ H) * E).sum(dtype=torch.float64))


def dead_inputs(H: Float[Tensor, "inp inp"]) -> Bool[Tensor, "inp"]:
    """Inputs that never fired: no code of theirs changes anything."""
    return H.diagonal() == 0


def damped(H: Float[Tensor, "inp inp"], share: float) -> Float[Tensor, "inp inp"]:
    """H + share * mean(diag H) on the diagonal, and the mean where an input is dead: positive definite for any share > 0."""
    mean = H.diagonal().mean()
    mean = torch.where(mean > 0, mean, 1.0)
    return H + torch.diag(torch.where(dead_inputs(H), mean, share * mean))


def inverse_factor(H: Float[Tensor, "inp inp"], share: float, note: Callable[[str], None]) -> Float[Tensor, "inp inp"]:
    """Upper U with U^T U = H^-1 of the damped H, by two Cholesky factorisations.

    Where H is too ill-conditioned, the damping grows tenfold until it works, and `note` is told: never a silent identity.
    """
    asked = share
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(H, share))
        pivots = lower.diagonal()
        if not failed and pivots.min() ** 2 > torch.finfo(H.dtype).eps * pivots.max() ** 2:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                break
        share = max(10 * share, 1e-6)
    if share != asked:
        note(f"second moments are near singular: damping raised from {asked:g} to {share:g} of the mean diagonal")
    return upper


def root(H: Float[Tensor, "inp inp"], share: float = 1e-6) -> Float[Tensor, "inp inp"]:
    """Lower L with L L^T = H, lightly damped."""
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(H, share))
        if not failed:
            return lower
        share *= 10
