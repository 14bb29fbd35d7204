"""Codes as planes: the form in which every multiplication kernel takes them, and learned vectors as words.

    W^[r, j] = sum over planes  scale[r, g] * (value(code[r, j]) - zero[r, g]),      g the group of column j

A plane's values are its codes or a table's. A kernel says in planes of which widths it holds a code of b bits (8 bits: one
plane, or two of 4, the second with its scale times 16); a trit-plane is a plane of 2 bits with a zero of 1. So a kernel that
knows planes of 1 to 8 bits in some widths knows every scalar grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from bitwright.grids.scales import read
from bitwright.grids.uneven import Uneven
from bitwright.terms.coded import Coded

Widths = Mapping[int, tuple[int, ...]]  # bits of a code -> bits of the planes that hold it, low ones first


@dataclass(frozen=True, eq=False)
class Plane:
    """Groups are `group` consecutive columns of one row. `table`: 2^bits values; None: a code is its own value."""

    bits: int
    group: int
    codes: UInt8[Tensor, "out k"]
    scale: Float[Tensor, "out g"]
    zero: Float[Tensor, "out g"]
    table: Float[Tensor, "values"] | None = None

    def decode(self) -> Float[Tensor, "out k"]:
        values = self.codes.float() if self.table is None else self.table[self.codes.long()]
        parts = (values.view(len(values), -1, self.group) - self.zero[..., None]) * self.scale[..., None]
        return parts.view(values.shape)


@dataclass(frozen=True, eq=False)
class Words:
    """Sums of learned vectors: scale[r, g] * sum_k books[k, digits[k, r, i]] for the run i of `v` columns."""

    group: int
    digits: UInt8[Tensor, "books out m"]
    scale: Float[Tensor, "out g"]
    books: Float[Tensor, "books words v"]


def planes(term: Coded, widths: Widths) -> tuple[Plane | Words, ...]:
    """The planes of a term. Raises NotImplementedError, in words, where it has none."""
    grid: Any = term.grid
    group = term.layout.block((term.shape[0], term.codes.shape[1] * grid.width))[1]
    if hasattr(grid, "words") and grid.words <= 256:
        digits = torch.stack([term.codes.int() // grid.words**k % grid.words for k in range(grid.books)]).to(torch.uint8)
        scale = term.params["scale"].float() if grid.scale else torch.ones(len(term.params["book"]), 1, device=digits.device)
        rows = scale.view(term.tiles).repeat_interleave(term.shape[0] // term.tiles[0], 0)
        return (Words(group, digits, rows, term.params["book"][0].float().view(grid.books, grid.words, grid.width)),)
    if grid.width > 1 or grid.levels > 256:
        raise NotImplementedError("its codes are vectors" if grid.width > 1 else "its codes have more than 8 bits")

    def spread(leaf: Shaped[Tensor, "groups 1"]) -> Shaped[Tensor, "out g"]:
        return leaf.view(term.tiles).repeat_interleave(term.shape[0] // term.tiles[0], 0)

    if isinstance(grid, Uneven):
        raise NotImplementedError("its groups have numbers of levels of their own")
    if hasattr(grid, "affine"):
        scale, zero = grid.affine(term.params)
        parts_of, codes, flat = widths[(grid.levels - 1).bit_length()], term.codes, scale == 0
        if flat.any():  # all codes of such a group are one number, which need not be a multiple of its scale: x = 1 (0 + x)
            number = grid.decode(torch.zeros_like(flat, dtype=torch.uint8), term.params)
            scale, zero = torch.where(flat, 1.0, scale), torch.where(flat, -number, zero)
            codes = codes.masked_fill(spread(flat).repeat_interleave(group, 1), 0)
        return tuple(affine_planes(codes, group, spread(scale), spread(zero + 0 * scale), parts_of))
    if not hasattr(grid, "scale"):
        raise NotImplementedError("its groups have points of their own")
    scale = read(grid.scale, term.params)
    if hasattr(grid, "patterns"):
        trits = (grid.patterns(scale) + 1).to(torch.uint8)
        parts = [(trits[:, k][term.codes.long()], spread(scale[:, k : k + 1])) for k in range(trits.shape[1])]
        return tuple(Plane(2, group, codes, s, torch.ones_like(s)) for codes, s in parts)
    if hasattr(grid, "unit"):
        (bits,) = widths[next(b for b in (1, 2, 4, 8) if grid.levels <= 2**b)]
        table = torch.zeros(2**bits, device=scale.device)
        table[: grid.levels] = grid.unit(scale.device)[:, 0]
        return (Plane(bits, group, term.codes, spread(scale), torch.zeros_like(spread(scale)), table),)
    raise NotImplementedError("its grid is neither equally spaced nor a table")


def affine_planes(
    codes: UInt8[Tensor, "out k"],
    group: int,
    scale: Float[Tensor, "out g"],
    zero: Float[Tensor, "out g"],
    widths: tuple[int, ...],
) -> list[Plane]:
    found, low = [], 0
    for bits in widths:
        part = (codes >> low) & (2**bits - 1)
        found.append(Plane(bits, group, part, scale * 2**low, zero if low == 0 else torch.zeros_like(zero)))
        low += bits
    return found
