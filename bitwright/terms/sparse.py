"""Sparse: a list of single weights, by rows: values in fp16, columns in the smallest integer type, row ends in int32."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.terms.base import Json, Spec

MOST = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class Sparse:
    """CSR: row r owns entries ends[r-1] .. ends[r] of `columns` and `values`."""

    shape: tuple[int, int]
    ends: Ints[Tensor, "out"]
    columns: Ints[Tensor, "nnz"]
    values: Float[Tensor, "nnz"]

    @staticmethod
    def count(shape: tuple[int, int], fraction: float) -> int:
        """How many entries a fraction of the weights is."""
        return round(fraction * shape[0] * shape[1])

    @classmethod
    def of(cls, dense: Float[Tensor, "out inp"], count: int, rank: Float[Tensor, "out inp"] | None = None) -> "Sparse":
        """The `count` entries of `dense` that are largest in magnitude (of `rank`, if given), rounded to fp16."""
        keep = torch.zeros(dense.numel(), dtype=torch.bool, device=dense.device)
        keep[(dense if rank is None else rank).abs().flatten().topk(count).indices] = True
        keep = keep.view(dense.shape)
        index = keep.nonzero()[:, 1].to(index_type(dense.shape[1]))
        return cls((dense.shape[0], dense.shape[1]), keep.sum(1).cumsum(0).int(), index, dense[keep].clamp(-MOST, MOST).half())

    def decode(self) -> Float[Tensor, "out inp"]:
        dense = torch.zeros(self.shape, device=self.values.device)
        dense[self.rows(), self.columns.long()] = self.values.float()
        return dense

    def times(self, x: Float[Tensor, "n inp"]) -> Float[Tensor, "n out"]:
        """x S^t, from the entries alone."""
        rows, columns = self.rows(), self.columns.long()
        parts = x[:, columns] * self.values.to(x.dtype)
        return x.new_zeros(len(x), self.shape[0]).index_add_(1, rows, parts)

    def rows(self) -> Ints[Tensor, "nnz"]:
        """The row of every entry."""
        starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])
        return torch.repeat_interleave(torch.arange(self.shape[0], device=self.ends.device), (self.ends - starts).long())

    def tensors(self) -> dict[str, Tensor]:
        return {"ends": self.ends, "columns": self.columns, "values": self.values}

    def meta(self) -> dict[str, Json]:
        return self.foretold(self.shape, len(self.values))

    @staticmethod
    def foretold(shape: tuple[int, int], count: int) -> dict[str, Json]:
        """The meta of a term with so many entries."""
        return {"kind": "sparse", "shape": list(shape), "count": count}

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        (out, inp), count = meta["shape"], meta["count"]
        return {
            "ends": ((out,), torch.int32),
            "columns": ((count,), index_type(inp)),
            "values": ((count,), torch.float16),
        }

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Sparse":
        return cls(tuple(meta["shape"]), tensors["ends"], tensors["columns"], tensors["values"])


def index_type(columns: int) -> torch.dtype:
    return torch.uint8 if columns <= 2**8 else torch.int16 if columns <= 2**15 else torch.int32
