"""Columns: a few whole input columns in fp16, with their places. What outliers become where they share their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.terms.base import Json, Spec
from bitwright.terms.sparse import MOST


@dataclass(frozen=True, eq=False)
class Columns:
    """`values` [out, k] in the columns `places` of a matrix that is zero elsewhere."""

    shape: tuple[int, int]
    places: Ints[Tensor, "k"]
    values: Float[Tensor, "out k"]

    @staticmethod
    def count(shape: tuple[int, int], fraction: float) -> int:
        """How many columns a fraction of the weights is."""
        return round(fraction * shape[1])

    @classmethod
    def of(cls, dense: Float[Tensor, "out inp"], count: int) -> "Columns":
        """The `count` columns of `dense` that are longest, rounded to fp16."""
        places = dense.norm(dim=0).topk(count).indices.sort().values
        return cls((dense.shape[0], dense.shape[1]), places.int(), dense[:, places].clamp(-MOST, MOST).half())

    def decode(self) -> Float[Tensor, "out inp"]:
        dense = torch.zeros(self.shape, device=self.values.device)
        dense[:, self.places.long()] = self.values.float()
        return dense

    def times(self, x: Float[Tensor, "n inp"]) -> Float[Tensor, "n out"]:
        """x C^t, from the columns alone."""
        return x[:, self.places.long()] @ self.values.to(x.dtype).T

    def tensors(self) -> dict[str, Tensor]:
        return {"places": self.places, "values": self.values}

    def meta(self) -> dict[str, Json]:
        return self.foretold(self.shape, len(self.places))

    @staticmethod
    def foretold(shape: tuple[int, int], count: int) -> dict[str, Json]:
        """The meta of a term with so many columns."""
        return {"kind": "columns", "shape": list(shape), "count": count}

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        out, count = meta["shape"][0], meta["count"]
        return {"places": ((count,), torch.int32), "values": ((out, count), torch.float16)}

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Columns":
        return cls(tuple(meta["shape"]), tensors["places"], tensors["values"])
