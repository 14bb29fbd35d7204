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


def kmeans(x: Float[Tensor, "g n"], price: Float[Tensor, "g n"], count: int) -> Float[Tensor, "g k"]:
    found = [kmeans_of(row, own, count) for row, own in zip(x, price)]
    return torch.stack(found) if found else x.new_empty(0, count)


def kmeans_of(x: Float[Tensor, "n"], price: Float[Tensor, "n"], count: int) -> Float[Tensor, "k"]:
    """D_m(j) = min over i <= j of D_(m-1)(i) + cost(i, j), every run's cost in a table."""
    n = len(x)
    sums = [torch.cat([x.new_zeros(1), (price * x**power).cumsum(0)]) for power in range(3)]
    mass, pull, square = (s[None, :] - s[:, None] for s in sums)
    run = (square - pull * pull / torch.where(mass > 0, mass, 1.0)).clamp_min(0).masked_fill(mass <= 0, 0)
    run = run.masked_fill(torch.ones_like(run, dtype=torch.bool).tril(-1), torch.inf)
    least, cuts = run[0], []
    for _ in range(1, count):
        least, cut = (least[:, None] + run).min(0)
        cuts.append(cut)
    end, found = n, list[Tensor]()
    for cut in (*cuts[::-1], torch.zeros(n + 1, dtype=torch.long)):
        start = int(cut[end])
        part, own = x[start:end], price[start:end]
        if len(part):
            spare = (own * part).sum() / own.sum() if own.sum() > 0 else part.mean()
        elif not found:
            spare = x[-1]
        found.append(spare)
        end = start
    return torch.stack(found[::-1])
