"""Dense and sparse: a few weights stay exact, the rest is rounded on ranges they no longer stretch (SqueezeLLM; card: squeezellm).

    S = the `sensitive` share of weights largest in F, and of the others the `outliers` share largest in |w|
    W^ = codes of W - S to nearest, points placed with price 0 inside S;   at S the sparse term adds  w - codes, so W^ = w there

F is the mean squared gradient of every weight (`fisher`). A weight that left still has a code, that of the point nearest to 0: what
is stored of it is the difference. Differs from the paper: outliers are the same share of every matrix, where the paper tunes
one multiple of the interquartile range for the whole model; shares are known before a weight is read, and are met exactly.
Costs 16 bits and a column index per weight kept, and 32 per row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas
from bitwright.errors import BadRequest
from bitwright.rounding.cvxq import squared_gradients
from bitwright.terms.base import Json, Terms, decode
from bitwright.terms.sparse import Sparse


@dataclass(frozen=True)
class DenseAndSparse:
    """Shares of all weights of a matrix: the `sensitive` ones by gradient, and `outliers` by size."""

    sensitive: float = 0.0005
    outliers: float = 0.004

    def __post_init__(self) -> None:
        if min(self.sensitive, self.outliers) < 0 or self.sensitive + self.outliers >= 1:
            raise BadRequest(
                f"Shares of weights are 0 or more and below 1 together, not {self.sensitive} and {self.outliers}; lower them."
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("fisher",) if self.sensitive else ()

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        taken = self.taken(W, known)
        weight = None if coder.weight is None else coder.weight.expand(W.shape).masked_fill(taken, 0)
        rest = W.masked_fill(taken, 0)
        dense = Coder.fit(rest, coder.bands, weight, coder.shared).terms(rest)
        count = int(taken.sum())
        return (*dense, Sparse.of(W - decode(dense).to(W.dtype), count, taken.to(W.dtype))) if count else dense

    def taken(self, W: Float[Tensor, "out inp"], known: Known) -> Bool[Tensor, "out inp"]:
        """The weights that stay exact: exactly so many, whatever ties there are."""
        found = torch.zeros(W.numel(), dtype=torch.bool, device=W.device)
        shape = (W.shape[0], W.shape[1])
        if self.sensitive:
            found[squared_gradients(known, "fisher", shape).flatten().topk(Sparse.count(shape, self.sensitive)).indices] = True
        size = W.abs().flatten().masked_fill(found, -1)
        found[size.topk(Sparse.count(shape, self.outliers)).indices] = True
        return found.view(W.shape)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        count = Sparse.count(shape, self.sensitive) + Sparse.count(shape, self.outliers)
        return (*metas(shape, bands), *((Sparse.foretold(shape, count),) if count else ()))
