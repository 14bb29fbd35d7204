"""Groups of vectors, of which a search by floats is known."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

DIM = 32


def clustered(n: int = 600, dim: int = DIM) -> Tensor:
    """Their directions are of unequal size, as those of models are."""
    size = torch.logspace(0, -1, dim)
    return (torch.randn(24, dim)[torch.randint(24, (n,))] + 0.5 * torch.randn(n, dim)) * size + 0.3


def exact(x: Tensor, q: Tensor, k: int) -> Tensor:
    return (normalize(q) @ normalize(x).T).topk(k).indices
