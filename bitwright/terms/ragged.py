"""Ragged packing: groups of codes whose numbers of levels differ, in one run of bytes.

For every number of levels, in ascending order, the codes of all its groups follow each other, packed as pack.py packs a row, the
last word cut to the bytes that it needs. A group of one level stores nothing. Who reads must know the levels of every group.
"""

from functools import cache
from math import ceil

import torch
from jaxtyping import Integer as Ints
from jaxtyping import UInt8
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.terms import pack as rows


def price(levels: int) -> float:
    """Bits per code where there are many."""
    if levels == 1:
        return 0.0
    digits, size = rows.word(levels)
    return 8 * size / digits


@cache
def width(count: int, levels: int) -> int:
    """Bytes of so many codes of one number of levels; never more than their price, rounded up."""
    if levels == 1:
        return 0
    digits, size = rows.word(levels)
    return count // digits * size + ceil((levels ** (count % digits) - 1).bit_length() / 8)


def payload(bits: float, count: int) -> int:
    """Bytes that so many codes are given."""
    return ceil(round(bits * count, 6) / 8)


def runs(levels: Ints[Tensor, "g"], n: int) -> tuple[Ints[Tensor, "g"], list[tuple[int, int]]]:
    """The groups in the order in which they are packed, and (levels, codes) of every run."""
    kinds, groups = levels.unique(return_counts=True)
    return levels.argsort(stable=True), [(int(kind), n * int(many)) for kind, many in zip(kinds, groups)]


def pack(codes: Ints[Tensor, "g n"], levels: Ints[Tensor, "g"], size: int) -> UInt8[Tensor, "size"]:
    """Raises ValueError where the codes do not fit into `size` bytes."""
    order, found = runs(levels, codes.shape[1])
    parts = codes[order].flatten().split([count for _, count in found])
    packed = [rows.pack(part[None], kind)[0, : width(count, kind)] for part, (kind, count) in zip(parts, found) if kind > 1]
    used = sum(map(len, packed))
    if used > size:
        raise ValueError(f"{used} bytes of codes do not fit into {size}")
    return torch.cat([*packed, torch.zeros(size - used, dtype=torch.uint8, device=codes.device)])


def unpack(data: UInt8[Tensor, "size"], levels: Ints[Tensor, "g"], n: int) -> UInt8[Tensor, "g n"]:
    """Inverse of `pack`, of at most 256 levels. Raises BadRequest where the levels ask for more codes than there are."""
    order, found = runs(levels, n)
    parts, at = [], 0
    for kind, count in found:
        used = width(count, kind)
        if at + used > len(data):
            raise BadRequest("A matrix names more codes than are stored; the file is damaged, download the model again.")
        run = data.new_zeros(rows.width(count, kind) if kind > 1 else 0)
        run[:used] = data[at : at + used]
        parts.append(rows.unpack(run[None], kind, count)[0] if kind > 1 else data.new_zeros(count))
        at += used
    codes = torch.empty(len(levels), n, dtype=torch.uint8, device=data.device)
    codes[order] = torch.cat(parts).view(-1, n)
    return codes
