"""How good is a search? Gains of judged documents (nDCG), overlap with float, and whether a difference is more than chance.

    nDCG@k = sum over ranks r of (2^gain_r - 1) / log2(r + 1), over that of the best order

Differences are paired: both systems answer the same queries, and the interval is over resampled queries (10,000 draws, seed 0).
A query without a judged document says nothing and is left out. Card: muvera, bebr (acceptance); Jarvelin and Kekalainen, 2002.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

DRAWS = 10_000
Gains = Sequence[Mapping[int, float]]  # of every query: document -> gain


@dataclass(frozen=True)
class Difference:
    """The mean of b - a over queries, with a 95 % interval."""

    value: float
    low: float
    high: float


def ndcg(ids: Int64[Tensor, "q k"], gains: Gains) -> Float64[Tensor, "q"]:
    """One number per query, nan for a query without a gain."""
    k = ids.shape[1]
    discount = 1 / torch.log2(torch.arange(k, dtype=torch.float64) + 2)
    found = []
    for row, judged in zip(ids.tolist(), gains):
        gain = torch.tensor([2.0 ** judged.get(i, 0.0) - 1 for i in row], dtype=torch.float64)
        best = torch.tensor(sorted((2.0**g - 1 for g in judged.values()), reverse=True)[:k], dtype=torch.float64)
        ideal = float((best * discount[: len(best)]).sum())
        found.append(float((gain * discount).sum()) / ideal if ideal > 0 else float("nan"))
    return torch.tensor(found, dtype=torch.float64)


def overlap(ids: Int64[Tensor, "q k"], exact: Int64[Tensor, "q k"]) -> Float64[Tensor, "q"]:
    """The share of the exact top k that is found."""
    return (ids[:, :, None] == exact[:, None, :]).any(1).double().mean(1)


def reciprocal_rank(ids: Int64[Tensor, "q k"], answers: Int64[Tensor, "q several"]) -> Float64[Tensor, "q"]:
    """1 / rank of the first answer, 0 where there is none; places without a document or an answer hold -1."""
    hit = (ids[:, :, None] == answers[:, None]).any(2) & (ids >= 0)
    return (hit / torch.arange(1, ids.shape[1] + 1, dtype=torch.float64)).amax(1)


def difference(a: Float64[Tensor, "q"], b: Float64[Tensor, "q"]) -> Difference:
    """Of two systems on the same queries."""
    change = (b - a)[~(b - a).isnan()]
    draws = torch.randint(len(change), (DRAWS, len(change)), generator=torch.Generator().manual_seed(0))
    means = change[draws].mean(1).sort().values
    return Difference(float(change.mean()), float(means[int(0.025 * DRAWS)]), float(means[int(0.975 * DRAWS)]))
