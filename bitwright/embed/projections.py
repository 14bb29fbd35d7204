"""Which coordinates are coded? An orthonormal map of the centred vectors, found from a sample of them.

    y = A (x - c),   A A^T = 1,   <q, x> = <q, c> + <A q, y> + what lies outside the rows of A

`rotation`    a random A: every coordinate alike, which is what a grid without training is made for (RaBitQ, EDEN)
`principal`   the eigenvectors of the covariance, largest first: coordinates of unequal worth, for books that make use of it
`dealt`       principal coordinates, dealt to groups of equal worth: of each, the product of variances (optimized product
              quantization's start, Ge et al., CVPR 2013)
`itq`         as many eigenvectors as coordinates, rotated so that signs lose least (Gong and Lazebnik, CVPR 2011)

The centre is subtracted from documents only: for a given query <q, c> is the same for all of them.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor


@runtime_checkable
class Projection(Protocol):
    """A way to find A, [dims, inp], for centred vectors."""

    def __call__(self, x: Float32[Tensor, "n inp"], dims: int) -> Float32[Tensor, "dims inp"]: ...


@dataclass(frozen=True)
class Rotation:
    """Random, from `seed`. What is stored is the matrix itself: generators differ from library to library."""

    seed: int = 0

    def __call__(self, x: Float32[Tensor, "n inp"], dims: int) -> Float32[Tensor, "dims inp"]:
        return orthonormal(x.shape[1], self.seed)[:dims].contiguous()


@dataclass(frozen=True)
class Principal:
    """Eigenvectors of the second moments, largest first; the sign is that of the largest entry."""

    def __call__(self, x: Float32[Tensor, "n inp"], dims: int) -> Float32[Tensor, "dims inp"]:
        wide = x.double()
        A = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1)[:, :dims].T
        largest = A.gather(1, A.abs().argmax(1, keepdim=True))
        return (A * largest.sign()).float().contiguous()


@dataclass(frozen=True)
class Dealt:
    """The groups lie one behind the other, at `edges(dims, groups)`."""

    groups: int

    def __call__(self, x: Float32[Tensor, "n inp"], dims: int) -> Float32[Tensor, "dims inp"]:
        principal = Principal()(x, dims)
        worth = (x @ principal.T).double().square().mean(0).clamp_min(1e-12).log().tolist()  # largest first
        room = [b - a for a, b in pairwise(edges(dims, self.groups))]
        held, total = [list[int]() for _ in room], [0.0] * len(room)
        for i, own in enumerate(worth):
            group = min((g for g in range(len(room)) if len(held[g]) < room[g]), key=lambda g: total[g])
            held[group].append(i)
            total[group] += own - worth[-1] + 1  # above 0, so that a coordinate counts, however small
        return principal[[i for group in held for i in group]].contiguous()


@dataclass(frozen=True)
class Itq:
    """min over R of |sign(R v) - R v| on the principal coordinates v, `rounds` times codes and then R (Procrustes)."""

    rounds: int = 50
    seed: int = 0

    def __call__(self, x: Float32[Tensor, "n inp"], dims: int) -> Float32[Tensor, "dims inp"]:
        principal = Principal()(x, dims)
        v, R = x @ principal.T, orthonormal(dims, self.seed)
        for _ in range(self.rounds):
            signs = torch.where(v @ R.T < 0, -1.0, 1.0)
            left, _, right = torch.linalg.svd(signs.T @ v)
            R = left @ right
        return (R @ principal).contiguous()


def edges(size: int, parts: int) -> list[int]:
    """Where parts of nearly equal size begin and end."""
    return [size * i // parts for i in range(parts + 1)]


def orthonormal(size: int, seed: int) -> Float32[Tensor, "size size"]:
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q, R = torch.linalg.qr(normal)
    return (Q * R.diagonal().sign()).float()
