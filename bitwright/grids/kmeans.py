"""k-means, exactly: the K free points of a group that leave the least weighted error (fit of grids/points.py; card: squeezellm).

    min over t_1 .. t_K of  sum_j F_j min_k (x_j - t_k)^2

In one dimension the best clusters are runs of the sorted numbers, so the optimum is a path: D_m(j) = min_i D_(m-1)(i) + cost(i, j),
the cost of a run from three prefix sums. The best i grows with j, which makes it O(K n log n) per group. SqueezeLLM runs Lloyd's
algorithm from one k-means++ start instead: 3 to 13 % above the optimum on average, and another table for another seed.
F is the mean squared gradient of each weight (`fisher`, its price of an error in the model's loss), the second moment of its
input (`diagonal`), or 1 (`even`). Points are the means of their clusters, rounded to their stored type afterwards.
"""

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import ALONE, Kin, Params, weighted
from bitwright.kernels import dispatch


@dataclass(frozen=True)
class KMeans:
    """`price` of an error: `fisher` per weight, `diagonal` per input, or `even`."""

    price: Literal["fisher", "diagonal", "even"] = "fisher"

    @property
    def needs(self) -> tuple[str, ...]:
        needs: tuple[str, ...] = {"fisher": ("fisher",), "diagonal": ("gram",), "even": ()}[self.price]
        return needs

    def refuses(self, grid: Any) -> str | None:
        """Why it cannot place the points of a grid."""
        return None if hasattr(grid, "store") else "k-means places free points: those of the grid `points`"

    def __call__(
        self, grid: Any, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        order = x.argsort(dim=1, stable=True)
        found = dispatch.kmeans(x.gather(1, order).double(), weighted(x, weight).gather(1, order).double(), grid.levels)
        stored: Params = grid.store(found.to(x.dtype))
        return stored
