"""Hamming distances of a pattern to every place of a text (card: hamming-text-pattern; the field: arXiv 2310.13174).

    D[s] = number of j with T[s + j] != P[j],    s = 0 ... n - m

`distances`   the fastest of four exact ways (sliding_methods.py), foretold from n, m and the letters
`within`      only the places at distance k or less
`estimate`    letters as rows of a Hadamard matrix, some of its columns: all of them are exact
`sampled`     some letters of the pattern stand for all

Letters are integers of any type, on the CPU. What the theory gains over these is factors of logarithms, behind constants that it
does not count; none of its four algorithms is built as such.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Float32, Int32, Int64, Integer
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.kernels.numba import sliding
from bitwright.kernels.sliding_methods import (
    Letters,
    by_letter,
    by_planes,
    compared,
    correlated,
    direct,
    letters,
    meeting,
    places,
    split,
    transform,
)

CHECKED = 512  # places at which an estimate is compared with the truth
METHODS = {"direct": direct, "by_letter": by_letter, "split": split, "by_planes": by_planes}


class Estimated(NamedTuple):
    """`bound` holds at 95 % of the places: the 97.5 % quantile of the errors at places drawn, which were compared exactly."""

    distances: Float32[Tensor, "places"]
    bound: float


class Near(NamedTuple):
    """Places in order, and their distances."""

    places: Int64[Tensor, "found"]
    distances: Int32[Tensor, "found"]


def distances(text: Integer[Tensor, "n"], pattern: Integer[Tensor, "m"]) -> Int32[Tensor, "places"]:
    """At all n - m + 1 places. Raises BadRequest where the pattern is empty or longer than the text."""
    known = letters(text, pattern)
    return METHODS[fastest(known)](known)


def fastest(known: Letters) -> str:
    """By the nanoseconds per letter of the text that were measured on one core with AVX-512."""
    m, each, meetings = len(known.pattern), transform(len(known.pattern)), meeting(known)
    often = meetings > each
    foretold = {
        "direct": 1 + 0.014 * m * known.text.itemsize,
        "by_letter": (known.size + 1) * each,
        "split": (often.sum() + often.any()) * each + 4 + meetings[~often].sum(),
        "by_planes": 8 + (0.05 + 0.01 * known.size.bit_length()) * m,
    }
    return min(foretold, key=lambda name: float(foretold[name]))


def within(text: Integer[Tensor, "n"], pattern: Integer[Tensor, "m"], k: int) -> Near:
    """All places at distance k or less. Of k + 1 pieces of the pattern one is met whole there: places where none is are not looked
    at, unless pieces are so short that they are met everywhere. Raises BadRequest as `distances`, and for k < 0."""
    known = letters(text, pattern)
    if k < 0:
        raise BadRequest(f"No place is at distance {k}; give k from 0 on.")
    length = len(pattern) // (k + 1)
    there, asked = (np.bincount(part, minlength=known.size)[: known.size] for part in (known.text, known.pattern))
    by_chance = float(there @ asked) / (len(text) * len(pattern))  # that two letters agree
    if length == 0 or (k + 1) ** 2 * by_chance**length > 1:
        found = METHODS[fastest(known)](known)
        near = (found <= k).nonzero()[:, 0]
        return Near(near, found[near])
    possible = np.zeros(places(known), np.uint8)
    sliding.pieces(known.text, known.pattern[: length * (k + 1)].reshape(k + 1, length), possible)
    looked = np.flatnonzero(possible)
    apart = np.empty(len(looked), np.int32)
    sliding.differing(known.text, known.pattern, looked, k, apart)
    return Near(torch.from_numpy(looked[apart <= k]), torch.from_numpy(apart[apart <= k]))


def estimate(text: Integer[Tensor, "n"], pattern: Integer[Tensor, "m"], columns: int, seed: int = 0) -> Estimated:
    """Letters as rows of a Hadamard matrix, of which `columns` are drawn: signs agree for equal letters, and on average for no
    others. What they agree by for unequal ones is taken off as far as the frequencies of letters foretell it.
    As many columns as letters, rounded up to a power of two, are exact. Raises BadRequest as `distances`, and for columns < 1."""
    known = letters(text, pattern)
    if columns < 1:
        raise BadRequest(f"{columns} columns estimate nothing; give 1 or more, as many as letters for the exact distances.")
    H = torch.from_numpy(scipy.linalg.hadamard(1 << (known.size - 1).bit_length())).float()
    some = 1 + torch.randperm(len(H) - 1, generator=torch.Generator().manual_seed(seed))[:columns]  # the first is the same for all
    drawn = torch.arange(len(H)) if columns >= len(H) else some
    signs = torch.nn.functional.pad(H[: known.size, drawn], (0, 0, 0, 1))  # another letter meets nothing
    T, P = (torch.from_numpy(part.astype(np.int64)) for part in (known.text, known.pattern))
    raw = correlated(((signs[T, c], signs[P, c]) for c in range(len(drawn))), places(known)) / len(drawn)
    meets = torch.bincount(T, minlength=len(signs)).float().outer(torch.bincount(P, minlength=len(signs)).float())
    meets.fill_diagonal_(0)
    by_chance = float((meets * (signs @ signs.T / len(drawn))).sum() / meets.sum().clamp_min(1))
    m = len(P)
    return judged(known, m - (raw - m * by_chance) / (1 - by_chance), seed)


def sampled(text: Integer[Tensor, "n"], pattern: Integer[Tensor, "m"], count: int, seed: int = 0) -> Estimated:
    """`count` letters of the pattern, drawn, stand for all. Raises BadRequest as `distances`, and for other counts than 1 to m."""
    known, m = letters(text, pattern), len(pattern)
    if not 1 <= count <= m:
        raise BadRequest(f"{count} letters of a pattern of {m} cannot be drawn; give 1 to {m}.")
    chosen = np.sort(np.random.default_rng(seed).permutation(m)[:count])
    return judged(known, compared(known, chosen).float() * (m / count), seed)


def judged(known: Letters, found: Float[Tensor, "places"], seed: int) -> Estimated:
    drawn = np.random.default_rng(seed).permutation(places(known))[:CHECKED]
    truth = np.empty(len(drawn), np.int32)
    sliding.differing(known.text, known.pattern, drawn, len(known.pattern), truth)
    errors = (found[torch.from_numpy(drawn)] - torch.from_numpy(truth)).abs().sort().values
    return Estimated(found.float(), float(errors[min(len(errors) - 1, int(0.975 * len(errors)))]))
