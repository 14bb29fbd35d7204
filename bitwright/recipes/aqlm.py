"""aqlm: arXiv 2401.06118 without its tuning of blocks: sums of learned vectors times a scale per row, fitted to the output.
One book of 256 x 4 (2 bits and, on 256 x 256 weights, 0.3 for book and scales) suits small matrices; the paper's are `books=2,
width=8` (2 bits; there 1.06 more) on large ones. `group` weights of a row (None: all) share a scale. Card: pv-tuning."""

from bitwright.grids.additive import Additive
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.aqlm import Aqlm


def aqlm(books: int = 1, words: int = 256, width: int = 4, group: int | None = None, beam: int = 1) -> Recipe:
    return Recipe(Additive(books, words, width), Layout(1, group), Aqlm(beam=beam), name="aqlm")
