"""Statistics of the data, as monoids: shards merge exactly, order does not matter beyond rounding.

    gram    H = E[x x^T]          second moments of the inputs a layer meets
    cross   C = E[x_f x^T]        of the same tokens in the float teacher (x_f) and in the compressed lane (x)
    range   min x, max x          over all tokens and inputs

Sums are fp32 on the real tokens; the mean is taken at the end, so that errors read as "per token".
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Stat(Protocol):
    """A sum over tokens that merges. `teacher`: whether it also needs the float lane's inputs."""

    teacher: bool

    def add(self, x: Float[Tensor, "tokens inp"], teacher: Float[Tensor, "tokens inp"] | None = None) -> None: ...
    def merge(self, other: Any) -> Any: ...
    def value(self) -> Tensor: ...


BAND = 128  # rows of the triangle updated by one product: a third of the arithmetic of the full square saved, and no more


@dataclass(eq=False)
class Gram:
    """E[x x^T], [inp, inp] fp32. The sum is kept in the upper triangle (and what the bands spill below it)."""

    width: int
    tokens: int = 0
    sum: Tensor | None = None
    teacher = False

    def add(self, x: Float[Tensor, "tokens inp"], teacher: Float[Tensor, "tokens inp"] | None = None) -> None:
        x = x.float()
        if self.sum is None:
            self.sum = x.new_zeros(self.width, self.width)
        for i in range(0, self.width, BAND):
            self.sum[i : i + BAND, i:].addmm_(x[:, i : i + BAND].T, x[:, i:])
        self.tokens += len(x)

    def merge(self, other: "Gram") -> "Gram":
        parts = [part.sum for part in (self, other) if part.sum is not None]
        return Gram(self.width, self.tokens + other.tokens, torch.stack(parts).sum(0) if parts else None)

    def value(self) -> Float[Tensor, "inp inp"]:
        if self.sum is None:
            return torch.zeros(self.width, self.width)
        upper = self.sum.triu()
        return (upper + upper.triu(1).T) / max(self.tokens, 1)


@dataclass(eq=False)
class Cross:
    """E[x_f x^T] of teacher and compressed inputs, [inp, inp] fp32."""

    width: int
    tokens: int = 0
    sum: Tensor | None = None
    teacher = True

    def add(self, x: Float[Tensor, "tokens inp"], teacher: Float[Tensor, "tokens inp"] | None = None) -> None:
        if teacher is None:
            raise ValueError("cross moments need the float teacher's inputs: run the stream with two lanes")
        if self.sum is None:
            self.sum = x.new_zeros(self.width, self.width, dtype=torch.float32)
        self.sum.addmm_(teacher.float().T, x.float())
        self.tokens += len(x)

    def merge(self, other: "Cross") -> "Cross":
        parts = [part.sum for part in (self, other) if part.sum is not None]
        return Cross(self.width, self.tokens + other.tokens, torch.stack(parts).sum(0) if parts else None)

    def value(self) -> Float[Tensor, "inp inp"]:
        total = torch.zeros(self.width, self.width) if self.sum is None else self.sum
        return total / max(self.tokens, 1)


@dataclass(eq=False)
class Range:
    """Least and largest input, [2] fp32."""

    width: int
    tokens: int = 0
    bounds: Tensor | None = None
    teacher = False

    def add(self, x: Float[Tensor, "tokens inp"], teacher: Float[Tensor, "tokens inp"] | None = None) -> None:
        self.tokens += len(x)
        here = torch.stack(torch.aminmax(x.float()))
        self.bounds = here if self.bounds is None else outer(self.bounds, here)

    def merge(self, other: "Range") -> "Range":
        parts = [part.bounds for part in (self, other) if part.bounds is not None]
        return Range(self.width, self.tokens + other.tokens, outer(*parts) if len(parts) == 2 else next(iter(parts), None))

    def value(self) -> Float[Tensor, "2"]:
        return torch.zeros(2) if self.bounds is None else self.bounds


@dataclass(eq=False)
class MeanRange:
    """Least and largest input of a batch, the mean over batches, [2] fp32: one odd input in one batch moves it little."""

    width: int
    tokens: int = 0
    batches: int = 0
    sum: Tensor | None = None
    teacher = False

    def add(self, x: Float[Tensor, "tokens inp"], teacher: Float[Tensor, "tokens inp"] | None = None) -> None:
        self.tokens, self.batches = self.tokens + len(x), self.batches + 1
        here = torch.stack(torch.aminmax(x.float()))
        self.sum = here if self.sum is None else self.sum + here

    def merge(self, other: "MeanRange") -> "MeanRange":
        parts = [part.sum for part in (self, other) if part.sum is not None]
        total = torch.stack(parts).sum(0) if parts else None
        return MeanRange(self.width, self.tokens + other.tokens, self.batches + other.batches, total)

    def value(self) -> Float[Tensor, "2"]:
        return torch.zeros(2) if self.sum is None else self.sum / self.batches


def outer(a: Float[Tensor, "2"], b: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """The smallest range that holds both."""
    return torch.stack([torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])])


@dataclass(eq=False)
class Known:
    """What is known of the inputs of a site: statistics by name, and what was derived from them for all its readers.

    `note` collects one-line remarks for the report: fallbacks, raised dampings, dropped steps.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    derived: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def gram(self) -> Float[Tensor, "inp inp"]:
        """Second moments of the inputs. Raises ValueError where they are not finite."""
        H = self["gram"]
        if not self.once("finite", lambda: bool(torch.isfinite(H).all())):
            raise ValueError("the second moments are not finite: inputs of this layer overflow or are NaN")
        return H

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise KeyError(f"the statistic {name!r} was not collected: the part that reads it must name it in `needs`")
        return self.values[name]

    def to(self, device: torch.device) -> "Known":
        return Known({name: value.to(device) for name, value in self.values.items()}, self.notes)

    def note(self, remark: str) -> None:
        if remark not in self.notes:
            self.notes.append(remark)

    def once(self, key: Hashable, derive: Callable[[], Any]) -> Any:
        """Derive something from the statistics once for all readers of this input (a factor, an eigenvalue)."""
        if key not in self.derived:
            before = len(self.notes)
            self.derived[key] = (derive(), self.notes[before:])
        value, remarks = self.derived[key]
        for remark in remarks:  # what was said when it was derived holds for every reader
            self.note(remark)
        return value
