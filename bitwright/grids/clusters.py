"""Weighted k-means: the words that codebooks are made of.

    min over C, c   sum_i d_i |x_i - C[c_i]|^2

Seeds by k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's iterations, the first half of them on a sample where there is
much to see. A vector has one price and not one per coordinate, so that the nearest word is the one that encoding will find.
Distances are matrix products. The seed of the draws is given, so the same vectors give the same words (on a GPU up
to the order of its sums).
"""

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

FEW = 64  # vectors per word that the first iterations look at
STILL = 1e-6  # a step of the words, relative to their size, at which it has converged
CHUNK = 1 << 22  # distances held at a time


def kmeans(x: Float[Tensor, "n w"], d: Float[Tensor, "n"], words: int, rounds: int, seed: int) -> Float[Tensor, "k w"]:
    """Words C that make sum_i d_i |x_i - C[c_i]|^2 small; a word that no vector is nearest to stays where it is."""
    gen = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(x), generator=gen)[: FEW * words].to(x.device)
    sample = x[some], d[some]
    C = seeds(*sample, words, gen)
    first = rounds // 2 if len(some) < len(x) else 0
    for (y, e), count in ((sample, first), ((x, d), rounds - first)):
        for _ in range(count):
            c, before = closest(y, C), C
            mass = torch.zeros_like(C[:, 0]).index_add_(0, c, e)[:, None]
            total = torch.zeros_like(C).index_add_(0, c, e[:, None] * y)
            C = torch.where(mass > 0, total / torch.where(mass > 0, mass, 1), C)
            if (C - before).norm() <= STILL * C.norm():
                break
    return C


def seeds(x: Float[Tensor, "n w"], d: Float[Tensor, "n"], words: int, gen: torch.Generator) -> Float[Tensor, "k w"]:
    """k-means++: every seed is a vector, drawn in proportion to what the seeds before it cost there."""
    cost, chosen, low = d, [], torch.full_like(d, torch.inf)
    for u in torch.rand(words, generator=gen, dtype=torch.float64).tolist():
        mass = cost.double().cumsum(0)
        chosen.append(torch.searchsorted(mass, u * mass[-1:], right=True).clamp_max(len(x) - 1))
        low = cost = torch.minimum(low, d * (x - x[chosen[-1]]).square().sum(1))
    return x[torch.cat(chosen)]


def closest(x: Float[Tensor, "n w"], C: Float[Tensor, "k w"]) -> Ints[Tensor, "n"]:
    """The nearest word, by products: close calls may go either way."""
    size, step = C.square().sum(1), max(1, CHUNK // len(C))
    return torch.cat([torch.addmm(size, part, C.T, alpha=-2).argmin(1) for part in x.split(step)])
