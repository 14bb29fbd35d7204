"""A view: what is coded of a vector, and what of a query meets it. A book codes the coordinates, a scan multiplies them.

    score(q, x) = start(q) + <asked(q), seen(x)>

Documents and queries may be seen by different maps, and none of them need be linear. `Linear`, the view of all codecs that are
not trained, subtracts the documents' mean c and applies an orthonormal A:  seen = A (x - c), asked = A q, start = <q, c>. `Same`
is the vector itself, for encodings of thousands of numbers that are alike and lie around zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from bitwright import index
from bitwright.embed.projections import Projection
from bitwright.terms.base import Json


class Asked(NamedTuple):
    """Queries as a book meets them; every document's score begins with `start`."""

    y: Float32[Tensor, "q dims"]
    start: Float32[Tensor, "q"]


@runtime_checkable
class View(Protocol):
    """Fitted, and stored with the codes: `index.VIEWS` finds the class by `meta()["kind"]`."""

    @property
    def dim(self) -> int:
        """Of the vectors that it takes."""

    @property
    def dims(self) -> int:
        """Of what is seen of them."""

    def seen(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n dims"]:
        """Documents."""

    def asked(self, q: Float32[Tensor, "q inp"]) -> Asked:
        """Queries."""

    def recalled(self, y: Float32[Tensor, "q dims"]) -> Asked:
        """Queries of which only what was seen of them is known: symmetric distances."""

    def vectors(self, y: Float32[Tensor, "n dims"]) -> Float32[Tensor, "n inp"]:
        """What documents seen like this may have been."""

    def tensors(self) -> dict[str, Tensor]: ...
    def meta(self) -> dict[str, Json]: ...

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> "View": ...


def told(tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> View:
    """The view that says this of itself."""
    view: View = index.load(index.VIEWS[str(meta["kind"])]).of(tensors, meta)
    return view


def below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What is called `name`.something, as something."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


@dataclass(frozen=True, eq=False)
class Linear:
    """The rows of `matrix` are orthonormal."""

    centre: Float32[Tensor, "inp"]
    matrix: Float32[Tensor, "dims inp"]

    @classmethod
    def fit(cls, x: Float32[Tensor, "n inp"], projection: Projection, dims: int | None = None) -> "Linear":
        """`dims` coordinates (None: all) of vectors like `x`."""
        centre = x.mean(0)
        return cls(centre, projection(x - centre, dims or x.shape[1]))

    @property
    def dim(self) -> int:
        return len(self.centre)

    @property
    def dims(self) -> int:
        return len(self.matrix)

    def seen(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n dims"]:
        return (x - self.centre) @ self.matrix.T

    def asked(self, q: Float32[Tensor, "q inp"]) -> Asked:
        return Asked(q @ self.matrix.T, q @ self.centre)

    def recalled(self, y: Float32[Tensor, "q dims"]) -> Asked:
        return self.asked(self.vectors(y))

    def vectors(self, y: Float32[Tensor, "n dims"]) -> Float32[Tensor, "n inp"]:
        return self.centre + y @ self.matrix

    def tensors(self) -> dict[str, Tensor]:
        return {"centre": self.centre, "matrix": self.matrix}

    def meta(self) -> dict[str, Json]:
        return {"kind": "linear"}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> "Linear":
        return cls(tensors["centre"], tensors["matrix"])


@dataclass(frozen=True)
class Same:
    dim: int

    @property
    def dims(self) -> int:
        return self.dim

    def seen(self, x: Float32[Tensor, "n dim"]) -> Float32[Tensor, "n dim"]:
        return x

    def asked(self, q: Float32[Tensor, "q dim"]) -> Asked:
        return Asked(q, q.new_zeros(len(q)))

    def recalled(self, y: Float32[Tensor, "q dim"]) -> Asked:
        return self.asked(y)

    def vectors(self, y: Float32[Tensor, "n dim"]) -> Float32[Tensor, "n dim"]:
        return y

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def meta(self) -> dict[str, Json]:
        return {"kind": "same", "dim": self.dim}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> "Same":
        return cls(int(meta["dim"]))  # type: ignore[arg-type]
