"""A book: sixteen points on a run of coordinates, as often as there are nibbles. Every code of this room is one.

    y^ = sum over t of P_t[c_t],   P_t in R^{16 x w_t} placed at the coordinates s_t ... s_t + w_t

Runs beside each other are a product code (four signs, two numbers of two bits, one of four, a learned list); runs over the same
coordinates are a sum, each nibble coding what those before it left. One scan serves all of them: a query is sixteen products
per nibble. Runs may differ in width, which is how a coordinate gets the bits it is worth (`books.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from bitwright.kernels.dispatch import call

POINTS = 16


@dataclass(frozen=True, eq=False)
class Book:
    """`points` of a run narrower than the widest are filled up with zeros; `dims` is the number of coordinates. `chosen`: the
    points that codes of documents are chosen by, where they were moved since (None: they are the same)."""

    starts: Int32[Tensor, "t"]
    widths: Int32[Tensor, "t"]
    points: Float32[Tensor, "t 16 w"]
    dims: int
    chosen: Float32[Tensor, "t 16 w"] | None = None

    def __post_init__(self) -> None:
        t, k, widest = self.points.shape
        ends = self.starts.long() + self.widths
        within = (
            (self.starts >= 0).all() and (self.widths >= 0).all() and (self.widths <= widest).all() and (ends <= self.dims).all()
        )
        if k != POINTS or not len(self.starts) == len(self.widths) == t or not within:
            raise ValueError(f"{t} runs of {k} points do not lie within {self.dims} coordinates")

    @property
    def writer(self) -> "Book":
        """The book that documents are coded with."""
        return self if self.chosen is None else Book(self.starts, self.widths, self.chosen, self.dims)

    def encode(self, y: Float32[Tensor, "n dims"]) -> UInt8[Tensor, "n t"]:
        """Nibble by nibble, the point nearest to what is left of its run."""
        return call("coded", y, self.starts, self.widths, self.points)

    def decode(self, codes: UInt8[Tensor, "n t"]) -> Float32[Tensor, "n dims"]:
        return call("decoded", codes, self.starts, self.widths, self.points, self.dims)

    def tables(self, queries: Float32[Tensor, "q dims"]) -> Float32[Tensor, "q t 16"]:
        """The product of a query with every point: summed over the nibbles of a code they are <query, decode(code)>."""
        reach = torch.arange(self.points.shape[2], device=queries.device)
        columns = (self.starts.long()[:, None] + reach).clamp_max(self.dims - 1)  # beyond a run the points are zero
        return torch.einsum("qtw,tkw->qtk", queries[:, columns], self.points)

    def tensors(self) -> dict[str, Tensor]:
        chosen = {} if self.chosen is None else {"chosen": self.chosen}
        return {"starts": self.starts, "widths": self.widths, "points": self.points, **chosen}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], dims: int) -> "Book":
        return cls(tensors["starts"], tensors["widths"], tensors["points"], dims, tensors.get("chosen"))

    @classmethod
    def listed(cls, runs: list[tuple[int, Float32[Tensor, "16 _"]]], dims: int) -> "Book":
        """From (first coordinate, points) per nibble."""
        widest = max(points.shape[1] for _, points in runs)
        filled = torch.stack([torch.nn.functional.pad(points, (0, widest - points.shape[1])) for _, points in runs])
        starts = torch.tensor([start for start, _ in runs], dtype=torch.int32)
        return cls(starts, torch.tensor([p.shape[1] for _, p in runs], dtype=torch.int32), filled.float().contiguous(), dims)
