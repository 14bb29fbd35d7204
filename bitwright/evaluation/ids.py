"""Do ids of a few numbers tell items apart, and is every number put to use? (card: semantic-ids)"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


def use(codes: Int64[Tensor, "n levels"], points: int) -> Float32[Tensor, "levels"]:
    """The share of each level's points that some item has."""
    return torch.tensor([len(c.unique()) / points for c in codes.T])


def entropy(codes: Int64[Tensor, "n levels"]) -> Float32[Tensor, "levels"]:
    """Of each level's numbers, in bits."""
    shares = [c.unique(return_counts=True)[1] / len(c) for c in codes.T]
    return torch.stack([-(p * p.log2()).sum() for p in shares])


def collisions(codes: Int64[Tensor, "n levels"]) -> float:
    """The share of items whose id another item has too."""
    _, where, times = codes.unique(dim=0, return_inverse=True, return_counts=True)
    return float((times[where] > 1).float().mean())
