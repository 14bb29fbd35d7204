"""A codec: vectors to nibbles and one number each, and back; queries to tables. Usable without any index.

    seen(x) ~ f decode(codes),      score = start(q) + f * sum over nibbles of tables(q)

What is seen of a vector says the view, what stands for it the book. `f` is one half-precision factor per vector. With a cosine
metric vectors are brought to length 1 first. What a code keeps of the direction it loses in length: `unbiased` is RaBitQ's and
EDEN's correction |y|^2 / <y, y^>, `least-squares` the f that is nearest to y, `unit` 1 / |y^|, `none` stores no factor. A query
is a vector (asymmetric: nothing of it is lost) or a code like those of documents (symmetric).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float16, Float32, UInt8
from torch import Tensor

from bitwright.embed.book import Book
from bitwright.embed.books import Maker
from bitwright.embed.projections import Projection
from bitwright.embed.views import Asked, Linear, View, below, told
from bitwright.errors import BadRequest
from bitwright.progress import Progress, silent
from bitwright.terms.base import Json

Metric = Literal["cosine", "ip"]
Scale = Literal["least-squares", "unbiased", "unit", "none"]
CHUNK = 1 << 13  # vectors encoded at a time: what is made of them stays in the cache


@dataclass(frozen=True, eq=False)
class Codes:
    """What is stored of `n` vectors."""

    nibbles: UInt8[Tensor, "n t"]
    factor: Float16[Tensor, "n"] | None

    def __len__(self) -> int:
        return len(self.nibbles)


@dataclass(frozen=True, eq=False)
class Codec:
    """Fitted. `name` says how it was made."""

    view: View
    book: Book
    metric: Metric = "cosine"
    scale: Scale = "least-squares"
    name: str = ""

    def __post_init__(self) -> None:
        for value, kind in ((self.metric, Metric), (self.scale, Scale)):
            if value not in get_args(kind):
                raise BadRequest(f"There is no {value!r} here; choose one of {', '.join(get_args(kind))}.")

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "n inp"],
        nibbles: int,
        projection: Projection,
        maker: Maker,
        dims: int | None = None,
        metric: Metric = "cosine",
        scale: Scale = "least-squares",
        name: str = "",
        progress: Progress = silent,
    ) -> "Codec":
        """For vectors like `x`, `dims` of their coordinates (None: all) in `nibbles` nibbles. Raises BadRequest for bad vectors."""
        x = vectors(x, None, metric)
        view = Linear.fit(x, projection, dims)
        return cls(view, maker(view.seen(x), nibbles, progress), metric, scale, name)

    @property
    def dim(self) -> int:
        return self.view.dim

    @property
    def bits(self) -> float:
        """Of codes per dimension of the vector, its factor not counted."""
        return 4 * len(self.book.starts) / self.dim

    def encode(self, x: Float[Tensor, "n inp"]) -> Codes:
        """Raises BadRequest for infinite, nan or (cosine) zero vectors, naming the first."""
        parts = [self._encode(part) for part in vectors(x, self.dim, self.metric).split(CHUNK)]
        factor = None if self.scale == "none" else torch.cat([f for _, f in parts]) if parts else torch.empty(0).half()
        nibbles = torch.cat([c for c, _ in parts]) if parts else torch.empty(0, len(self.book.starts), dtype=torch.uint8)
        return Codes(nibbles, factor)

    def _encode(self, x: Float32[Tensor, "n inp"]) -> tuple[UInt8[Tensor, "n t"], Float16[Tensor, "n"]]:
        y, writer = self.view.seen(x), self.book.writer
        codes = writer.encode(y)
        return codes, self.factor(y, writer.decode(codes))

    def factor(self, y: Float32[Tensor, "n dims"], near: Float32[Tensor, "n dims"]) -> Float16[Tensor, "n"]:
        along, own, code = (y * near).sum(1), y.square().sum(1), near.square().sum(1)
        ways = {"unbiased": (own, along), "unit": (code.sqrt(), code)}
        top, bottom = ways.get(self.scale, (along, code))
        return torch.where(bottom > 0, top / bottom, 1.0).clamp(0, 60000).half()  # a code that points away counts nothing

    def near(self, codes: Codes) -> Float32[Tensor, "n dims"]:
        """What codes keep of what was seen."""
        y = self.book.decode(codes.nibbles)
        return y if codes.factor is None else codes.factor.float()[:, None] * y

    def decode(self, codes: Codes) -> Float32[Tensor, "n inp"]:
        return self.view.vectors(self.near(codes))

    def queries(self, q: Float[Tensor, "q inp"]) -> Float32[Tensor, "q inp"]:
        """Checked, and of length 1 under a cosine metric."""
        return vectors(q, self.dim, self.metric, "query")

    def asked(self, q: Float[Tensor, "q inp"] | Codes) -> Asked:
        """Raises BadRequest for bad vectors."""
        return self.view.recalled(self.near(q)) if isinstance(q, Codes) else self.view.asked(self.queries(q))

    def tensors(self) -> dict[str, Tensor]:
        parts = {"view": self.view.tensors(), "book": self.book.tensors()}
        return {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}

    def meta(self) -> dict[str, Json]:
        return {"view": self.view.meta(), "metric": self.metric, "scale": self.scale, "name": self.name}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> "Codec":
        seen = told(below(tensors, "view"), meta["view"])  # type: ignore[arg-type]
        return cls(seen, Book.of(below(tensors, "book"), seen.dims), meta["metric"], meta["scale"], str(meta["name"]))  # type: ignore[arg-type]

    @cached_property
    def space_id(self) -> str:
        """The same for codecs whose codes may be mixed: a hash of all that decides what a code means."""
        digest = hashlib.sha256(f"{self.metric} {self.scale} {json.dumps(self.view.meta(), sort_keys=True)}".encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def vectors(x: Float[Tensor, "n inp"], dim: int | None, metric: Metric, what: str = "vector") -> Float32[Tensor, "n inp"]:
    """The vectors in fp32, of length 1 under a cosine metric."""
    if dim is not None and x.shape[1] != dim:
        raise BadRequest(f"The {what} has {x.shape[1]} dimensions and this codec takes {dim}; use the model that it was fitted on.")
    x = x.float()
    bad = (~x.isfinite()).any(1)
    if bad.any():
        raise BadRequest(f"{what.capitalize()} {int(bad.nonzero()[0])} holds nan or infinity; leave it out or mend it.")
    if metric == "ip":
        return x
    length = x.norm(dim=1, keepdim=True)
    if (length == 0).any():
        first = int((length[:, 0] == 0).nonzero()[0])
        raise BadRequest(f"{what.capitalize()} {first} is zero and has no direction; leave it out or use metric ip.")
    return x / length
