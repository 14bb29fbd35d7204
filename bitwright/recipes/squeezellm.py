"""squeezellm: arXiv 2306.07629: a table of 2^bits points per row by k-means under the mean squared gradients, 0.45 % of the weights
kept exact (`sparse=0`: none). `price` of an error: fisher, diagonal (no backward pass) or even. Card: squeezellm."""

from typing import Literal

from bitwright.grids.kmeans import KMeans
from bitwright.grids.points import Points
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.dense_and_sparse import DenseAndSparse

SENSITIVE = 1 / 9  # of what is kept exact: by gradient; the rest by size


def squeezellm(
    bits: int = 3, group: int | None = None, sparse: float | int = 0.0045, price: Literal["fisher", "diagonal", "even"] = "fisher"
) -> Recipe:
    share = SENSITIVE if price == "fisher" else 0.0
    kept = DenseAndSparse(float(sparse * share), float(sparse * (1 - share)))
    return Recipe(Points(2**bits, KMeans(price)), Layout(1, group), kept, name="squeezellm")
