"""Is a score worth a threshold? Precision and recall pooled over all queries, and whether a probability means what it says.

A ranking measure looks at one query at a time and cannot see that 0.7 is a hit for one query and noise for another. These can.
Scores of any shape; equal scores are cut together, so a constant score earns the share of relevant ones and no more.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


def curve(scores: Float[Tensor, "..."], relevant: Bool[Tensor, "..."]) -> tuple[Float64[Tensor, "cuts"], ...]:
    """(threshold, precision, recall) of every cut `score >= threshold`, the strictest first."""
    ranked, order = scores.flatten().double().sort(descending=True)
    hits = relevant.flatten()[order].double().cumsum(0)
    last = torch.cat([ranked[1:] < ranked[:-1], torch.tensor([True])])
    found = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    return ranked[last], (hits / found)[last], (hits / hits[-1])[last]


def pr_auc(scores: Float[Tensor, "..."], relevant: Bool[Tensor, "..."]) -> float:
    """Average precision: precision at every cut, weighted with the recall that the cut adds."""
    _, precision, recall = curve(scores, relevant)
    return float((precision * recall.diff(prepend=torch.zeros(1).double())).sum())


def cut(scores: Float[Tensor, "..."], relevant: Bool[Tensor, "..."], recall: float = 0.95) -> tuple[float, float]:
    """(threshold, precision) of the strictest cut that keeps this share of the relevant ones."""
    threshold, precision, reached = curve(scores, relevant)
    first = int((reached >= recall).nonzero()[0])
    return float(threshold[first]), float(precision[first])


def calibration_error(chances: Float[Tensor, "..."], relevant: Bool[Tensor, "..."], bins: int = 15) -> float:
    """Mean over results of |mean chance - share of relevant ones| of its bin, bins of equally many results (ECE)."""
    chance, order = chances.flatten().double().sort()
    parts = zip(chance.tensor_split(bins), relevant.flatten()[order].double().tensor_split(bins))
    return sum(len(c) * abs(float(c.mean() - r.mean())) for c, r in parts if len(c)) / len(chance)
