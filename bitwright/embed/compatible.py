"""A new encoder whose queries meet the codes of an old one: nothing is encoded again (backward-compatible training; card: bebr).

    loss = own(new) + CE over [old code of the same thing, the 5 hardest old codes] at cosines / temperature, and the reverse

Old codes stay as they are; the leading coordinates of what the new view sees (all of it at length 1) meet them. Differs from the
paper: the new view starts where the old codes are, its leading rows being the orthonormal ones nearest to the regression of old
codes on new vectors, the others what is orthogonal to those. On few vectors that start is better than what training makes of
a random one, and training is kept only where it is worth more.

Who mixes spaces says so: `old_index.about = {"compatible": [new.space_id]}`, then `old_index.search(q, by=new)`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed.projections import orthonormal
from bitwright.embed.teaching import Lesson, contrast
from bitwright.embed.views import View
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import overlap


def aligned(x: Float32[Tensor, "n inp"], old: Float32[Tensor, "n before"], dims: int, seed: int = 0) -> Float32[Tensor, "dims inp"]:
    """Orthonormal rows, the first of which bring x near to `old`, what was seen of the same things; the others at random.
    Raises BadRequest where there is no room for them."""
    before, inp = old.shape[1], x.shape[1]
    if not before <= dims <= inp:
        raise BadRequest(f"{before} old coordinates do not fit into {dims} of {inp} dimensions; take {before} to {inp} of them.")
    fitted = torch.linalg.lstsq(x, normalize(old)).solution
    left, _, right = torch.linalg.svd(fitted.T, full_matrices=False)
    first = left @ right
    rest = orthonormal(inp, seed)
    basis, _ = torch.linalg.qr(torch.cat([first.T, rest - first.T @ (first @ rest)], 1))
    return torch.cat([first, basis.T[before:dims]])


@dataclass(frozen=True, eq=False)
class Compatible:
    """Row i of `x` and of `old`, what the older view saw of it, are one thing of `ids`; `own` has rows of the same."""

    own: Lesson
    x: Float32[Tensor, "n inp"]
    old: Float32[Tensor, "n before"]
    ids: Int64[Tensor, "n"]
    temperature: float = 0.05
    hardest: int = 5
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.own)

    def loss(self, view: View, rows: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
        new, old = normalize(view.seen(self.x[rows]))[:, : self.old.shape[1]], normalize(self.old[rows])
        return self.own.loss(view, rows) + self.weight * contrast(new, old, self.ids[rows], self.temperature, self.hardest)


@dataclass(frozen=True, eq=False)
class Met:
    """How much of the new floats' top k new queries find among old codes, vectors asking: to be added to what a view is worth."""

    queries: Float32[Tensor, "q inp"]
    documents: Float32[Tensor, "n inp"]
    old: Float32[Tensor, "n before"]
    k: int = 10

    def __call__(self, view: View) -> float:
        exact = (self.queries @ self.documents.T).topk(self.k).indices
        scores = view.asked(self.queries).y[:, : self.old.shape[1]] @ normalize(self.old).T
        return float(overlap(scores.topk(self.k).indices, exact).mean())
