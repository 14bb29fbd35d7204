"""Blocking: of two tables of records as vectors, the few pairs that are worth a closer look.

By distances of floats, by signs and Hamming distances, or by tables of some of the signs. The least number of candidates that holds
a share of the matches is told with its ties, for among records equally far the order is chance.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.kernels.scanning import hamming


class Neighbours(NamedTuple):
    """Of every right record, the nearest left ones first."""

    rows: Int64[Tensor, "q k"]
    distances: Float32[Tensor, "q k"]


class Blocking(NamedTuple):
    """`k` candidates per record find `recall` of the matches. `ties` more per record are as near as the last of them."""

    k: int
    recall: float
    ties: float


def nearest(left: Float32[Tensor, "n dims"], right: Float32[Tensor, "q dims"], k: int) -> Neighbours:
    found = [torch.cdist(part, left).topk(k, largest=False) for part in right.split(1024)]
    return Neighbours(torch.cat([rows for _, rows in found]), torch.cat([apart for apart, _ in found]))


def signs(x: Float32[Tensor, "n dims"]) -> UInt8[Tensor, "n bytes"]:
    """A bit per number, the first of eight highest."""
    return torch.from_numpy(np.packbits(x.numpy() > 0, axis=1))


def nearest_signs(left: UInt8[Tensor, "n bytes"], right: UInt8[Tensor, "q bytes"], k: int) -> Neighbours:
    found = hamming(left, right, k)
    return Neighbours(found.rows, found.scores.float())


def blocking(found: Neighbours, pairs: Int64[Tensor, "p 2"], target: float) -> Blocking:
    """The least k whose candidates hold `target` of these pairs (left, right), which must not be those of the test.
    Raises BadRequest where there is none."""
    met = found.rows[pairs[:, 1]] == pairs[:, :1]
    recall = met.double().cumsum(1).mean(0)
    if float(recall[-1]) < target:
        raise BadRequest(
            f"{found.rows.shape[1]} candidates find {float(recall[-1]):.3f} of the matches, not {target}; ask for more."
        )
    k = int((recall >= target).nonzero()[0]) + 1
    equal = found.distances[:, k:] == found.distances[:, k - 1 : k]
    return Blocking(k, float(recall[k - 1]), float(equal.sum(1).double().mean()))


def buckets(
    left: UInt8[Tensor, "n bytes"], right: UInt8[Tensor, "q bytes"], tables: int, bits: int, seed: int = 0
) -> Int64[Tensor, "c 2"]:
    """Pairs (left, right) that share all of `bits` signs, drawn per table, in one of the tables. How often matches and strangers do
    so is to be measured: the encoder promises no formula. Raises BadRequest for more bits than there are or than 62."""
    if not 1 <= bits <= min(62, 8 * left.shape[1]):
        raise BadRequest(f"A table of {bits} bits of {8 * left.shape[1]} cannot be made; give 1 to {min(62, 8 * left.shape[1])}.")
    gen, found = torch.Generator().manual_seed(seed), []
    one, other = (torch.from_numpy(np.unpackbits(codes.numpy(), axis=1)).long() for codes in (left, right))
    for _ in range(tables):
        drawn = torch.randperm(one.shape[1], generator=gen)[:bits]
        a, b = ((part[:, drawn] << torch.arange(bits)).sum(1) for part in (one, other))
        a, rows = a.sort()
        first, last = torch.searchsorted(a, b), torch.searchsorted(a, b, right=True)
        count = last - first
        place = torch.arange(int(count.sum())) - torch.repeat_interleave(count.cumsum(0) - count - first, count)
        found.append(torch.stack([rows[place], torch.repeat_interleave(torch.arange(len(b)), count)], 1))
    return torch.cat(found).unique(dim=0)
