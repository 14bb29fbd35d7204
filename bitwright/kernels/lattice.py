"""A coder of scalar grids as plain arrays: what every compiled column loop reads.

Two forms cover every scalar grid: equally spaced points (scale, zero, top code) and points in ascending order per group; grids
whose points are not sorted get a third, searched from end to end.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.coder import Coder
from bitwright.grids.base import points
from bitwright.grids.uneven import Uneven, level_counts

UNIFORM, ASCENDING, ANY = 0, 1, 2
MOST = 256  # points of a grid


class Lattice(NamedTuple):
    """Column j of the columns asked for, row r: group `first[j] + r // rows[j] * across[j]` of `table`.

    A uniform group is (scale, zero, ...) with codes 0 .. levels-1; any other holds its `levels` points. The table lies
    where the parameters do, all else on the CPU.
    """

    table: Float[Tensor, "groups most"]
    kind: Ints[Tensor, "b"]
    levels: Ints[Tensor, "b"]
    first: Ints[Tensor, "b"]
    rows: Ints[Tensor, "b"]
    across: Ints[Tensor, "b"]


def scalar(coder: Coder) -> bool:
    """Whether all grids of a coder have a form here."""
    return all(band.grid.width == 1 and band.grid.levels <= MOST for band in coder.bands)


def lattice(coder: Coder, cols: Ints[Tensor, "b"]) -> Lattice:
    """The groups of a coder, and which of them each of `cols` uses."""
    band, place = coder.home
    kinds, counts, tables, firsts, rows, across, steps = [], [], [], [], [], [], []
    base = 0
    most = max([b.grid.levels for b in coder.bands if not hasattr(b.grid, "affine")], default=2)
    for i, (b, p) in enumerate(zip(coder.bands, coder.params)):
        some = next(iter(p.values()))
        groups, table = len(some), torch.zeros(len(some), most, device=some.device)
        if hasattr(b.grid, "affine"):
            table[:, :1], table[:, 1:2] = b.grid.affine(p)
            kinds.append(UNIFORM)
        else:
            table[:, : b.grid.levels] = points(b.grid, p)[..., 0]
            kinds.append(ASCENDING if hasattr(b.grid, "table") else ANY)
        block = b.layout.block(coder.inner(i))
        counts.append(b.grid.levels)
        tables.append(table)
        firsts.append(base)
        rows.append(block[0])
        across.append(coder.inner(i)[1] // block[1])
        steps.append(block[1])
        base += groups
    own = band[cols.cpu()]
    first = torch.tensor(firsts)[own] + place[cols.cpu()] // torch.tensor(steps)[own]
    wide = [torch.tensor(values)[own] for values in (kinds, counts, rows, across)]
    for i, (b, p) in enumerate(zip(coder.bands, coder.params)):
        if isinstance(b.grid, Uneven) and hasattr(b.grid, "affine"):  # its groups below each other have as many
            wide[1][own == i] = level_counts(b.grid, p).cpu()[first[own == i] - firsts[i]]
    return Lattice(torch.cat(tables), wide[0], wide[1], first, wide[2], wide[3])
