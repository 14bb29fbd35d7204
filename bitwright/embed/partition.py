"""A coarse partition: documents lie cell by cell, a query looks only into the cells whose centres answer it best.

    cells(q) = the `probes` cells c of largest <q, m_c>,   m_c the mean of the cell's decoded documents (k-means)

(the inverted lists of Jegou et al., 2011, without residuals: codes stay what they are, so cells can be made and unmade at any
time and need no vectors). A cell is a run of rows and so a run of blocks of the code file; what its first and last block share
with neighbours is masked. Every cell probed is the flat search, bit for bit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor

from bitwright.grids.clusters import closest, kmeans
from bitwright.kernels.scanning import BLOCK, Blocked, Found, scan

BYTES = BLOCK // 8  # of a bitmap, per block


class Probed(NamedTuple):
    found: Found
    visited: int  # rows, of all queries together
    blocks: int


@dataclass(frozen=True, eq=False)
class Cells:
    """Rows `ends[c - 1]` to `ends[c]` are those of cell c."""

    centres: Float32[Tensor, "c dims"]
    ends: Int64[Tensor, "c"]
    probes: int

    @classmethod
    def among(cls, y: Float32[Tensor, "n dims"], cells: int, probes: int, seed: int = 0) -> "Cells":
        """Centres for documents like `y`; as yet without rows."""
        centres = kmeans(y, torch.ones(len(y)), cells, 20, seed)
        return cls(centres, torch.zeros(cells, dtype=torch.int64), probes)

    def nearest(self, y: Float32[Tensor, "n dims"]) -> Int64[Tensor, "n"]:
        return closest(y, self.centres) if len(y) else torch.empty(0, dtype=torch.int64)

    def numbers(self) -> Int64[Tensor, "n"]:
        """The cell of every row."""
        return torch.repeat_interleave(self.ends.diff(prepend=self.ends.new_zeros(1)))

    def holding(self, numbers: Int64[Tensor, "n"]) -> "Cells":
        """Once rows lie in the order of their cells' `numbers`."""
        return Cells(self.centres, torch.bincount(numbers, minlength=len(self.centres)).cumsum(0), self.probes)

    def scan(
        self, y: Float32[Tensor, "q dims"], probes: int, codes: Blocked, tables: Float32[Tensor, "q t 16"], k: int,
        factor: Float16[Tensor, "n"] | None, allowed: UInt8[Tensor, "bytes"] | None,
    ) -> Probed:  # fmt: skip
        """As scanning.scan, in the cells that the coordinates `y` of the queries point to."""
        chosen = (y @ self.centres.T).topk(probes).indices
        scores, rows = torch.full((*chosen.shape, k), -torch.inf), torch.full((*chosen.shape, k), -1)
        visited = blocks = 0
        for cell in chosen.unique().tolist():
            start, end = int(self.ends[cell - 1]) if cell else 0, int(self.ends[cell])
            if start == end:
                continue
            asking, place = (chosen == cell).nonzero(as_tuple=True)
            first, last = start // BLOCK, -(-end // BLOCK)
            own = masked(allowed, start, end, first, last, codes.count)
            at = slice(first * BLOCK, min(last * BLOCK, codes.count))
            part = Blocked(codes.data[first:last], at.stop - at.start)
            here = scan(part, tables[asking], min(k, end - start), None if factor is None else factor[at], own)
            scores[asking, place, : here.scores.shape[1]] = here.scores.float()
            rows[asking, place, : here.rows.shape[1]] = torch.where(here.rows < 0, -1, here.rows + at.start)
            visited, blocks = visited + len(asking) * bits(own), blocks + last - first
        return Probed(best(scores.flatten(1), rows.flatten(1), k), visited, blocks)

    def tensors(self) -> dict[str, Tensor]:
        return {"centres": self.centres, "ends": self.ends}


def masked(allowed: Tensor | None, start: int, end: int, first: int, last: int, count: int) -> UInt8[Tensor, "bytes"]:
    """The bitmap of the blocks first..last - 1, only rows start..end - 1 of it."""
    rows = torch.arange(first * BLOCK, last * BLOCK).view(-1, 8)
    own = (((rows >= start) & (rows < end)).byte() << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    size = -(-min(last * BLOCK, count) // 8) - first * BYTES
    return own[:size] if allowed is None else own[:size] & allowed[first * BYTES : first * BYTES + size]


def bits(bitmap: UInt8[Tensor, "bytes"]) -> int:
    return int((bitmap[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).sum())


def best(scores: Float32[Tensor, "q c"], rows: Int64[Tensor, "q c"], k: int) -> Found:
    """Lower rows first among equals, as a scan has it."""
    order = rows.argsort(1)
    scores, rows = scores.gather(1, order), rows.gather(1, order)
    top = scores.sort(dim=1, descending=True, stable=True)
    return Found(top.values[:, :k], rows.gather(1, top.indices)[:, :k])
