"""Rows: coded rows in another order than the matrix has them, so that rows alike can share parameters.

Stored is the cluster of every row, log2(clusters) bits: inside a cluster the rows keep their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.terms import base, pack
from bitwright.terms.base import Json, Spec


@dataclass(frozen=True, eq=False)
class Rows:
    """`inner` holds the rows by ascending `cluster` (one number per row, below `count`)."""

    inner: base.Term
    cluster: Ints[Tensor, "out"]
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def decode(self) -> Float[Tensor, "out inp"]:
        sorted_rows = self.inner.decode()
        return torch.empty_like(sorted_rows).index_copy_(0, by_cluster(self.cluster), sorted_rows)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), "cluster": pack.pack(self.cluster[None], self.count)}

    def meta(self) -> dict[str, Json]:
        return rows_meta(self.inner.meta(), self.count)

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        stored = pack.width(meta["shape"][0], meta["count"])
        return {**base.spec(meta["inner"]), "cluster": ((1, stored), torch.uint8)}

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Rows":
        cluster = pack.unpack(tensors["cluster"], meta["count"], meta["shape"][0])[0]
        return cls(base.load(meta["inner"], tensors), cluster, meta["count"])


def by_cluster(cluster: Ints[Tensor, "out"]) -> Ints[Tensor, "out"]:
    """The rows in the order in which they are coded."""
    return cluster.argsort(stable=True)


def rows_meta(inner: Mapping[str, Json], count: int) -> dict[str, Json]:
    return {"kind": "rows", "shape": list(inner["shape"]), "count": count, "inner": dict(inner)}
