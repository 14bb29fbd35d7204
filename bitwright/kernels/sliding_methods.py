"""Exact ways to Hamming distances of a pattern to every place of a text; `sliding_hamming.py` chooses among them.

`direct`     compare and count, a byte per letter: n m / 64 instructions
`by_letter`  m - sum over letters c of the correlation of [T = c] with [P = c], by Fourier transforms
`split`      the same for frequent letters; of a rare one, every place where it meets itself is counted (Abrahamson, 1987, whose
             bound on rare, sqrt(m log m), we replace by the measured price of either way)
`by_planes`  bits of letters in planes, 64 letters a word: popcount of the or over planes of T xor P

Transforms are of blocks of the text about 8 m long, all letters summed before one goes back; they run in fp32, and again in fp64
where a sum comes out further than 0.3 from a whole number.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, Integer
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.kernels.numba import sliding

LEAST = 1 << 13  # letters of a block that is transformed
SAMPLE = 4096  # letters that frequencies are taken from


class Letters(NamedTuple):
    """A text and a pattern over the letters 0 ... size - 1 of the pattern; `size` in the text is any other letter."""

    text: np.ndarray
    pattern: np.ndarray
    size: int


def letters(text: Integer[Tensor, "n"], pattern: Integer[Tensor, "m"]) -> Letters:
    n, m = len(text), len(pattern)
    if not 0 < m <= n:
        raise BadRequest(f"A pattern of {m} letters has no place in a text of {n}; give one of 1 to {n} letters.")
    own, coded = np.unique(pattern.numpy(), return_inverse=True)
    kind = np.uint8 if len(own) < 256 else np.uint16 if len(own) < 65536 else np.uint32
    values = text.contiguous().numpy()
    if values.itemsize == 1 and text.dtype == pattern.dtype:  # a table of all letters
        table = np.full(256, len(own), kind)
        table[own.view(np.uint8)] = np.arange(len(own))
        return Letters(table[values.view(np.uint8)], coded.astype(kind), len(own))
    at = np.searchsorted(own, values).clip(max=len(own) - 1)
    return Letters(np.where(own[at] == values, at, len(own)).astype(kind), coded.astype(kind), len(own))


def places(known: Letters) -> int:
    return len(known.text) - len(known.pattern) + 1


def direct(known: Letters) -> Int32[Tensor, "places"]:
    return compared(known, np.arange(len(known.pattern)))


def compared(known: Letters, chosen: np.ndarray) -> Int32[Tensor, "places"]:
    """Of the chosen letters of the pattern."""
    out = np.zeros(places(known), np.int32)
    sliding.direct(known.text, known.pattern[chosen], chosen, out)
    return torch.from_numpy(out)


def by_letter(known: Letters) -> Int32[Tensor, "places"]:
    return len(known.pattern) - matches(known, range(known.size))


def split(known: Letters) -> Int32[Tensor, "places"]:
    count, m = np.bincount(known.pattern, minlength=known.size), len(known.pattern)
    often = frequent(known)
    order = np.argsort(known.pattern, kind="stable")
    rare = order[~often[known.pattern[order]]]
    edges = np.concatenate([[0], np.where(often, 0, count).cumsum(), [len(rare)]])  # letters of the pattern, then all others
    out = np.zeros(places(known), np.int32)
    sliding.meetings(known.text, rare, edges, out)
    return m - torch.from_numpy(out) - matches(known, np.flatnonzero(often).tolist())


def by_planes(known: Letters) -> Int32[Tensor, "places"]:
    out = np.zeros(places(known), np.int32)
    bits = range(int(known.size).bit_length())
    planes = np.stack([words(known.text >> b & 1, 2) for b in bits])
    m, long = len(known.pattern), -(-(len(known.pattern) + 63) // 64)
    shifted = np.zeros((64, len(bits) + 1, long), np.uint64)
    for shift in range(64):
        for b, plane in enumerate(
            [*(known.pattern >> b & 1 for b in bits), np.ones(m, np.uint8)]
        ):  # the last: where the pattern is
            own = words(np.concatenate([np.zeros(shift, np.uint8), plane.astype(np.uint8)]), 0)
            shifted[shift, b, : len(own)] = own
    sliding.planes(planes, shifted, out)
    return torch.from_numpy(out)


def words(bits: np.ndarray, more: int) -> np.ndarray:
    """Bits as words of 64, the first lowest, and `more` words of nothing."""
    filled = np.concatenate([bits.astype(np.uint8), np.zeros(-len(bits) % 64 + 64 * more, np.uint8)])
    return np.packbits(filled, bitorder="little").view(np.uint64)


def frequent(known: Letters) -> np.ndarray:
    """Which letters of the pattern are cheaper by a transform than by counting where they meet themselves."""
    return meeting(known) > transform(len(known.pattern))


def meeting(known: Letters) -> np.ndarray:
    """Nanoseconds per letter of the text that the meetings of every letter of the pattern take, from a sample of the text."""
    some = known.text[:: max(1, len(known.text) // SAMPLE)]
    return (
        1.8 * np.bincount(known.pattern, minlength=known.size) * np.bincount(some, minlength=known.size)[: known.size] / len(some)
    )


def transform(m: int) -> float:
    """The same of one transform."""
    return 0.033 * math.log2(max(LEAST, 8 * m)) ** 2


def matches(known: Letters, chosen: Iterable[int]) -> Int32[Tensor, "places"]:
    """Places of these letters that agree."""
    text, pattern = torch.from_numpy(known.text), torch.from_numpy(known.pattern)
    chosen = list(chosen)
    if not chosen:
        return torch.zeros(places(known), dtype=torch.int32)
    for kind in (torch.float32, torch.float64):
        found = correlated([((text == c).to(kind), (pattern == c).to(kind)) for c in chosen], places(known))
        whole = found.round()
        if float((found - whole).abs().max()) < 0.3:
            break
    return whole.int()


def correlated(pairs: Iterable[tuple[Float[Tensor, "n"], Float[Tensor, "m"]]], count: int) -> Float[Tensor, "places"]:
    """Sum over pairs (x, y) of sum over j of x[s + j] y[j]."""
    total: Tensor | None = None
    for x, y in pairs:
        m, n = len(y), len(x)
        size = 1 << (min(max(LEAST, 8 * m), n) - 1).bit_length()
        step = size - m + 1
        blocks = -(-count // step)
        rows = torch.nn.functional.pad(x, (0, (blocks - 1) * step + size - n)).unfold(0, size, step)
        more = torch.fft.rfft(rows) * torch.fft.rfft(y, size).conj()
        total = more if total is None else total.add_(more)
    assert total is not None
    return torch.fft.irfft(total, size)[:, :step].flatten()[:count]
