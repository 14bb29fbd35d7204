"""Loops of sliding Hamming distances on the CPU."""

from typing import no_type_check

import numpy as np
from numba import njit

from bitwright.kernels.numba.vectors import popcount

TILE = 4096  # places whose counts stay in the nearest cache
FULL = 252  # letters that a byte can count, in fours


@njit(nogil=True, cache=True)
@no_type_check
def direct(text, letters, at, out):
    """out[s] += how many letters[j] differ from text[s + at[j]]; four of them at a time, counted in bytes."""
    count = np.empty(TILE, np.uint8)
    whole = len(letters) // 4 * 4
    for start in range(0, len(out), TILE):
        here = min(TILE, len(out) - start)
        for first in range(0, len(letters), FULL):
            count[:here] = 0
            last = min(first + FULL, len(letters))
            for j in range(first, min(last, whole), 4):
                a, b, c, d = letters[j], letters[j + 1], letters[j + 2], letters[j + 3]
                t, u = text[start + at[j] :][:here], text[start + at[j + 1] :][:here]  # cuts: indices from 0 become vectors
                v, w = text[start + at[j + 2] :][:here], text[start + at[j + 3] :][:here]
                for s in range(here):
                    count[s] += np.uint8(t[s] != a) + np.uint8(u[s] != b) + np.uint8(v[s] != c) + np.uint8(w[s] != d)
            for j in range(max(first, whole), last):
                a, t = letters[j], text[start + at[j] :][:here]
                for s in range(here):
                    count[s] += np.uint8(t[s] != a)
            for s in range(here):
                out[start + s] += count[s]


@njit(nogil=True, cache=True)
@no_type_check
def meetings(text, rare, edges, out):
    """out[s] += 1 wherever a letter meets itself; letter c is at rare[edges[c] : edges[c + 1]] of the pattern."""
    for i in range(len(text)):
        c = text[i]
        for j in range(edges[c], edges[c + 1]):
            s = i - rare[j]
            if 0 <= s < len(out):
                out[s] += 1


@njit(nogil=True, cache=True)
@no_type_check
def planes(text, shifted, out):
    """text [bits, words]; shifted [64, bits + 1, words]: the pattern moved by 0 ... 63, and last where it is."""
    bits, long = text.shape[0], shifted.shape[2]
    for s in range(len(out)):
        own, at = shifted[s & 63], s >> 6
        total = 0
        for w in range(min(long, text.shape[1] - at)):
            differ = np.uint64(0)
            for b in range(bits):
                differ |= text[b, at + w] ^ own[b, w]
            total += np.int64(popcount(differ & own[bits, w]))
        out[s] = total


@njit(nogil=True, cache=True)
@no_type_check
def differing(text, pattern, places, most, out):
    """The distance at these places; counting ends beyond `most`."""
    for i in range(len(places)):
        total = 0
        for j in range(len(pattern)):
            total += text[places[i] + j] != pattern[j]
            if total > most:
                break
        out[i] = total


@njit(nogil=True, cache=True)
@no_type_check
def pieces(text, pattern, possible):
    """possible[s] = 1 where a piece seems to be met in its place: its rolling hash is. A hash that lies costs a look, no more."""
    count, length = pattern.shape
    base, bits = np.uint64(0x9E3779B97F4A7C15), 4
    while 1 << bits < 8 * count:
        bits += 1
    first, after = np.full(1 << bits, -1), np.full(count, -1)  # a list of pieces per value of the upper bits
    own, top = np.zeros(count, np.uint64), np.uint64(1)
    for _ in range(length - 1):
        top *= base
    down = np.uint64(64 - bits)
    for p in range(count):
        for j in range(length):
            own[p] = own[p] * base + np.uint64(pattern[p, j]) + np.uint64(1)
        at = np.int64((own[p] * base) >> down)
        after[p] = first[at]
        first[at] = p
    rolling = np.uint64(0)
    for i in range(len(text)):
        if i >= length:
            rolling -= (np.uint64(text[i - length]) + np.uint64(1)) * top
        rolling = rolling * base + np.uint64(text[i]) + np.uint64(1)
        if i >= length - 1:
            p = first[np.int64((rolling * base) >> down)]
            while p >= 0:
                s = i - length + 1 - p * length
                if own[p] == rolling and 0 <= s < len(possible):
                    possible[s] = 1
                p = after[p]
