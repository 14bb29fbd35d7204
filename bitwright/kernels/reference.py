"""Column loops in plain torch: any grid, any device, any precision. Slow, and the definition of what the others compute."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor, nn

from bitwright.coder import Coder
from bitwright.kernels.packed import Packed

SUMS = 1 << 23  # distances held at a time


def gptq_block(
    block: Float[Tensor, "out b"], U: Float[Tensor, "b b"], coder: Coder, cols: Ints[Tensor, "b"], widths: Sequence[int]
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]]:
    W, Q, E = block.clone(), torch.empty_like(block), torch.empty_like(block)
    at = 0
    for step in cols.cpu().split(list(widths)):
        here = slice(at, at + len(step))
        Q[:, here] = coder.snap(W[:, here], step)
        gap, corner = W[:, here] - Q[:, here], U[here, here]
        E[:, here] = gap / corner if len(step) == 1 else torch.linalg.solve_triangular(corner, gap, upper=True, left=False)
        at += len(step)
        for k in range(here.start, here.stop):
            W[:, at:] -= E[:, k : k + 1] * U[k : k + 1, at:]
    return Q, E


def descent(
    W: Float[Tensor, "out inp"],
    Q: Float[Tensor, "out inp"],
    R: Float[Tensor, "out inp"],
    H: Float[Tensor, "inp inp"],
    coder: Coder,
    relaxed: bool,
) -> tuple[Float[Tensor, "out inp"], Float[Tensor, "out inp"]]:
    Q, R = Q.clone(), R.clone()
    for cols in coder.steps():
        corner, gap = H[cols][:, cols], W[:, cols] - Q[:, cols]
        pull = R[:, cols] - gap @ corner
        if len(cols) == 1:
            u = W[:, cols] + (pull / corner if corner else 0)
        else:
            u = W[:, cols] + pull @ torch.linalg.pinv(corner, hermitian=True)
        new = u if relaxed else coder.snap(u, cols)
        R -= (new - Q[:, cols]) @ H[cols]
        Q[:, cols] = new
    return Q, R


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"]:
    return nn.functional.linear(x, packed.weight().to(x.dtype))


def nearest_sum(x: Float[Tensor, "n w"], first: Float[Tensor, "i w"], last: Float[Tensor, "j w"]) -> Ints[Tensor, "n"]:
    """In fp64: as products, distances lose half their digits."""
    sums = (first.double()[None] + last.double()[:, None]).flatten(0, 1)
    size, step = sums.square().sum(1), max(1, SUMS // len(sums))
    return torch.cat([torch.addmm(size, part.double(), sums.T, alpha=-2).argmin(1) for part in x.split(step)])
