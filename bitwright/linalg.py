"""Linear algebra of a rounding problem, each piece once: the objective, damping, dead inputs, the factor of the inverse.

The layer objective of everything here is  tr(E H E^T)  with E = W - W^ and H = E[x x^T]: the mean squared error of the
layer's output per token, summed over outputs.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitwright.kernels.devices import coarse_products

LARGE = 4096  # inputs from which on


def objective(E: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"]) -> float:
    """tr(E H E^T), summed in fp64."""
    return inner(pull(E, H), E)


def pull(E: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"]) -> Float[Tensor, "out inp"]:
    """E H. Of large fp32 matrices a GPU may round the operands to 11 bits: the errors of millions of products average out."""
    with coarse_products() if len(H) >= LARGE else nullcontext():
        return E @ H


def inner(A: Float[Tensor, "out inp"], B: Float[Tensor, "out inp"]) -> float:
    """The sum of the products of their entries, in fp64."""
    return float((A * B).sum(dtype=torch.float64))


def dead_inputs(H: Float[Tensor, "inp inp"]) -> Bool[Tensor, "inp"]:
    """Inputs that never fired: no code of theirs changes anything."""
    return H.diagonal() == 0


def damped(H: Float[Tensor, "inp inp"], share: float) -> Float[Tensor, "inp inp"]:
    """H + share * mean(diag H) on the diagonal, and the mean where an input is dead: positive definite for any share > 0."""
    mean = H.diagonal().mean()
    mean = torch.where(mean > 0, mean, 1.0)
    return H + torch.diag(torch.where(dead_inputs(H), mean, share * mean))


def inverse_factor(H: Float[Tensor, "inp inp"], share: float, note: Callable[[str], None]) -> Float[Tensor, "inp inp"]:
    """Upper U with U^T U = H^-1 of the damped H: the inverse of the upper R with R R^T = H, which a Cholesky factorisation of H
    read backwards gives. Half the work of inverting H and factoring that, and H^-1, whose condition is worse, never appears.

    Where H is too ill-conditioned, the damping grows tenfold until it works, and `note` is told: never a silent identity.
    """
    asked = share
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(H, share).flip(0, 1))
        pivots = lower.diagonal()
        if not failed and pivots.min() ** 2 > torch.finfo(H.dtype).eps * pivots.max() ** 2:
            break
        share = max(10 * share, 1e-6)
    if share != asked:
        note(f"second moments are near singular: damping raised from {asked:g} to {share:g} of the mean diagonal")
    return triangular_inverse(lower.flip(0, 1))


def triangular_inverse(R: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Of an upper triangular matrix, by halves: nearly all of it is matrix products."""
    half = len(R) // 2
    if half < (64 if R.device.type == "cpu" else 1024):  # launches cost more than arithmetic on an accelerator
        return torch.linalg.solve_triangular(R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True)
    inverse = torch.zeros_like(R)
    first, last = triangular_inverse(R[:half, :half]), triangular_inverse(R[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -(first @ R[:half, half:]) @ last
    return inverse


def root(H: Float[Tensor, "inp inp"], share: float = 1e-6) -> Float[Tensor, "inp inp"]:
    """Lower L with L L^T = H, lightly damped."""
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(H, share))
        if not failed:
            return lower
        share *= 10


def sketched_svd(M: Float[Tensor, "out inp"], rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """P [out, rank], S [rank], Q [inp, rank] of the largest singular values: exact where the matrix is hardly wider than the
    sketch, else from its range under 48 random directions more than wanted, sharpened by four power iterations."""
    more = rank + 48
    if min(M.shape) <= 2 * more:
        P, S, Qt = torch.linalg.svd(M, full_matrices=False)
        return P[:, :rank], S[:rank], Qt[:rank].T
    draw = torch.randn(M.shape[1], more, dtype=M.dtype, generator=torch.Generator().manual_seed(seed)).to(M.device)
    basis, _ = torch.linalg.qr(M @ draw)
    for _ in range(4):
        back, _ = torch.linalg.qr(M.T @ basis)
        basis, _ = torch.linalg.qr(M @ back)
    P, S, Qt = torch.linalg.svd(basis.T @ M, full_matrices=False)
    return basis @ P[:, :rank], S[:rank], Qt[:rank].T
