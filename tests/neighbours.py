"""Clustered vectors, codes of them, and what it means that an engine finds what we find."""

from functools import cache

import torch
from torch import Tensor

from bitwright.embed import codecs
from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.kernels.scanning import hamming

N, Q, DIM, K = 3000, 300, 64, 10


@cache
def vectors() -> tuple[Tensor, Tensor]:
    """Documents and queries from the same groups."""
    gen = torch.Generator().manual_seed(3)
    centres = torch.randn(40, DIM, generator=gen)
    members = centres[torch.randint(40, (N + Q,), generator=gen)] + 0.6 * torch.randn(N + Q, DIM, generator=gen)
    x = members * torch.logspace(0, -0.7, DIM) + 0.2
    return x[:N], x[N:]


@cache
def coded(name: str = "rotated", bits: float = 1.0, scale: str = "least-squares", named: bool = False) -> Index:
    """`named`: with ids of its own."""
    x, _ = vectors()
    ids = 7 * torch.randperm(N, generator=torch.Generator().manual_seed(1)) + 11 if named else None
    return Index.build(codecs.fit(x, bits, name, scale=scale), x, ids)


@cache
def texts() -> Index:
    """Few documents that are known by text, and text of the kind that is hard to store."""
    names = ["a\ttab", "a\nline", 'a "quote"', "a\\back\\slash", "größer 数", "x" * 300, *(f"d{i}" for i in range(94))]
    x = vectors()[0][:100]
    return Index.build(codecs.fit(x, 1.0, "rotated"), x, names)


def everything(index: Index) -> contents.Part:
    return contents.taken(index, torch.arange(len(index)))


def rows(index: Index, ids: Tensor) -> Tensor:
    """Of ids: where they are."""
    order = index.names.argsort()
    return order[torch.searchsorted(index.names[order], ids)]


def agree(found: Tensor, scores: Tensor, atol: float = 0.0) -> None:
    """`found` rows are the best of `scores` [q, n], larger is better, in any order among equals."""
    got = scores.gather(1, found)
    torch.testing.assert_close(got, scores.topk(found.shape[1]).values, atol=atol, rtol=0)
    assert all(len(set(row)) == len(row) for row in found.tolist())


def distances(index: Index, q: Tensor) -> Tensor:
    """Bits that differ, [q, n], by our own scan."""
    asked, own = (torch.from_numpy(b) for b in (contents.signs(index.codec, q), everything(index).bits))
    found = hamming(own, asked, len(own))
    return torch.empty(found.scores.shape, dtype=torch.int32).scatter_(1, found.rows, found.scores)


def shared(found: Tensor, scores: Tensor) -> float:
    """The part of the rows `found` that are among the best of `scores`, in any order among equals."""
    last = scores.topk(found.shape[1]).values[:, -1:]
    return float((scores.gather(1, found) >= last - 1e-6).float().mean())
