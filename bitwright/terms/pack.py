"""Packing: codes of any number of levels to bytes and back, row by row.

Codes are digits. A word of `size` bytes holds the most base-K digits that fit, least significant first, and the word size is
the one that wastes least: 5 trits in a byte, 5 nine-level codes in two bytes, 24 five-level codes in seven. For K a power of
two the digits are bits, so the words are the plain dense bit stream, low bits first, that engines expect. Every row starts
on a word of its own: rows can be read, split over machines and looked up (embeddings) alone.

    bits per code = 8 size / floor(8 size / log2 K)  >=  log2 K
"""

from functools import cache
from math import ceil

import torch
from jaxtyping import Integer as Ints
from jaxtyping import UInt8
from torch import Tensor


@cache
def word(levels: int) -> tuple[int, int]:
    """(digits, bytes) of the densest word for this many levels; the shortest among equals. Words of at most 7 bytes fit int64."""
    if not 2 <= levels <= 2**16:
        raise ValueError(f"a code has 2 to 65536 levels, not {levels}")

    def digits(size: int) -> int:
        n = 0
        while levels ** (n + 1) <= 256**size:
            n += 1
        return n

    sizes = [size for size in range(1, 8) if digits(size)]
    best = min(sizes, key=lambda size: (size / digits(size), size))
    return digits(best), best


def width(count: int, levels: int) -> int:
    """Bytes of one packed row of `count` codes."""
    digits, size = word(levels)
    return ceil(count / digits) * size


def pack(codes: Ints[Tensor, "rows count"], levels: int) -> UInt8[Tensor, "rows bytes"]:
    """Digits to bytes. Raises ValueError where a code is not in 0 .. levels - 1."""
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < levels):
        raise ValueError(f"codes must lie in 0 .. {levels - 1}")
    digits, size = word(levels)
    rows, count = codes.shape
    words = ceil(count / digits)
    padded = torch.zeros(rows, words * digits, dtype=torch.int64, device=codes.device)
    padded[:, :count] = codes
    powers = torch.tensor([levels**i for i in range(digits)], device=codes.device)
    value = (padded.view(rows, words, digits) * powers).sum(-1, keepdim=True)
    shifts = torch.arange(0, 8 * size, 8, device=codes.device)
    return ((value >> shifts) & 255).to(torch.uint8).view(rows, words * size)


def octets(words: Ints[Tensor, "rows words"]) -> UInt8[Tensor, "rows bytes"]:
    """The bytes of words of 32 bits. A column of one word may keep any stride and count as contiguous, so it is copied flat."""
    return words.reshape(-1).view(torch.uint8).view(len(words), 4 * words.shape[1])


def unpack(data: UInt8[Tensor, "rows bytes"], levels: int, count: int) -> Ints[Tensor, "rows count"]:
    """Inverse of `pack`; uint8 where the levels allow it, else int32."""
    digits, size = word(levels)
    rows = len(data)
    small = torch.uint8 if levels <= 256 else torch.int32
    if size == 1 and levels**digits <= 256:  # a byte is a row of a table of at most 256 words
        table = digit_table(levels, digits).to(data.device)
        return table[data.int()].view(rows, -1)[:, :count].contiguous()
    shifts = torch.arange(0, 8 * size, 8, device=data.device)
    wide = torch.int32 if size <= 3 else torch.int64
    value = (data.view(rows, -1, size).to(wide) << shifts.to(wide)).sum(-1, keepdim=True, dtype=wide)
    if (bits := levels.bit_length() - 1) * digits == 8 * size:
        fields = torch.arange(0, 8 * size, bits, device=data.device).to(wide)
        return ((value >> fields) & (levels - 1)).to(small).view(rows, -1)[:, :count].contiguous()
    powers = torch.tensor([levels**i for i in range(digits)], device=data.device)
    return (value // powers % levels).to(small).view(rows, -1)[:, :count].contiguous()


@cache
def digit_table(levels: int, digits: int) -> UInt8[Tensor, "words digits"]:
    powers = torch.tensor([levels**i for i in range(digits)])
    return (torch.arange(256)[:, None] // powers % levels).to(torch.uint8)
