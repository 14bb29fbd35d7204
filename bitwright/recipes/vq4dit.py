"""vq4dit: arXiv 2408.17131: one book of 256 words of 4 weights per matrix by k-means, then every vector chooses among its nearest
words by the output of the block. 2 bits and the book. Card: vq4dit."""

from bitwright.grids.codebook import Codebook
from bitwright.recipe import Recipe
from bitwright.recipes.trained import trained
from bitwright.rounding.vq4dit import Vq4Dit


def vq4dit(words: int = 256, width: int = 4, group: int | None = None, steps: int = 400, count: int = 2) -> Recipe:
    return trained(Vq4Dit(count), 0, group, steps, "vq4dit", Codebook(words, width))
