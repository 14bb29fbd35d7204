"""Stationary representations: every version of a model is taught against one classifier that never moves (arXiv 2405.02581).

    weights w_1 .. w_K: unit vectors in K - 1 dimensions, every two at cosine -1 / (K - 1);     logits = <features, w>
    lesson = l CE + (1 - l) HOC,     HOC = mean over i of  logsumexp over j of another class (m <old_i, new_j>) - m <old_i, new_i>

Class means of all versions go to the same vertices, so new queries meet an old gallery; HOC does the same for single features
(of length 1) of an older version, which stays as it is. More vertices than classes leave room for classes to come. The simplex is
part of the format of an index: it is computed here in one order, in fp64, from nothing but K. Card: stationary-representations.
Differs from the released code: there features of the anchor's own class enter the sum as exp(0), a floor that never goes away;
here they are left out, and the feature itself is counted among the others, so that the loss has 0 as its least value.
Codes go on top, fitted once: thresholds of a version's own end compatibility.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bitwright.errors import BadRequest


def simplex(classes: int) -> Float64[Tensor, "classes dims"]:
    """Unit rows, dims = classes - 1. Raises BadRequest for fewer than two."""
    if classes < 2:
        raise BadRequest(f"A simplex of {classes} vertices separates nothing; ask for at least 2.")
    dims = classes - 1
    last = torch.full((1, dims), (1 - classes**0.5) / dims, dtype=torch.float64)
    corners = torch.cat([torch.eye(dims, dtype=torch.float64), last])
    return normalize(corners - corners.mean(0))


def higher_order(
    new: Float32[Tensor, "b dims"], old: Float32[Tensor, "b dims"], labels: Int64[Tensor, "b"], sharpness: float = 10.0
) -> Float[Tensor, ""]:
    """HOC of one batch; row by row the same things."""
    cosines = sharpness * normalize(old) @ normalize(new).T
    others = cosines.masked_fill((labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool), -torch.inf)
    return (others.logsumexp(1) - cosines.diagonal()).mean()


def lesson(
    new: Float32[Tensor, "b dims"],
    labels: Int64[Tensor, "b"],
    weights: Float[Tensor, "classes dims"],
    old: Float32[Tensor, "b dims"] | None = None,
    share: float = 0.1,
    sharpness: float = 10.0,
) -> Float[Tensor, ""]:
    """`share` of cross-entropy, the rest HOC; all of it cross-entropy where there is no older version."""
    told = cross_entropy(new @ weights.to(new.dtype).T, labels)
    return told if old is None else share * told + (1 - share) * higher_order(new, old, labels, sharpness)


@dataclass(frozen=True, eq=False)
class Versions:
    """`found[t, k]`: accuracy of a search by queries of version t in a gallery of version k."""

    found: Float64[Tensor, "versions versions"]

    @property
    def share(self) -> float:
        """AC: of the pairs k < t, those whose newer queries find more than the older ones."""
        better = (self.found > self.found.diagonal()).tril(-1)
        return float(better.sum()) / max(1, len(self.found) * (len(self.found) - 1) // 2)

    @property
    def mean(self) -> float:
        """AM: of the lower triangle, the diagonal with it."""
        return float(self.found[torch.tril_indices(*self.found.shape).unbind()].mean())


def accuracy(
    queries: Float32[Tensor, "q dims"], labels: Int64[Tensor, "q"], gallery: Float32[Tensor, "n dims"], named: Int64[Tensor, "n"]
) -> float:
    """The share of queries whose nearest class, by the mean of its gallery vectors, is their own."""
    classes, place = named.unique(return_inverse=True)
    templates = torch.zeros(len(classes), gallery.shape[1]).index_add_(0, place, normalize(gallery))
    return float((classes[(normalize(queries) @ normalize(templates).T).argmax(1)] == labels).double().mean())
