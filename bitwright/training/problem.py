"""A joint rounding problem: several matrices, a function of all of them, and batches of data on which it is judged.

    loss(W^_1, ..., W^_m; batch)   is least, or nothing, at the float matrices

What the function is (one layer's outputs, one block's, the model's logits) is the business of who makes the problem (scopes.py);
a method sees matrices and numbers. The last `held` batches are for judging: no gradient is ever taken on them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, uncovered
from bitwright.errors import BadRequest
from bitwright.terms.base import Json, Terms, decode
from bitwright.terms.coded import Coded
from bitwright.training.inputs import Inputs

Weights = Mapping[str, Float[Tensor, "out inp"]]


@dataclass(frozen=True, eq=False)
class Subject:
    """One matrix: the float weights, the terms it starts from, and what is known of its inputs.

    The coded terms are what training moves; all others (outliers, low rank) stay as they are and lie on top.
    """

    W: Float[Tensor, "out inp"]
    start: Terms
    known: Known

    @property
    def coded(self) -> tuple[Coded, ...]:
        return tuple(t for t in self.start if isinstance(t, Coded))

    @property
    def coder(self) -> Coder:
        """The grids and parameters that the start found. Raises BadRequest where the start has none that could be trained."""
        if not self.coded:
            raise BadRequest("A trained rounding moves codes on a grid, and these terms hold none; start it from another rounding.")
        bands = tuple(Band(t.grid, t.layout, t.columns) for t in self.coded)
        if why := uncovered(bands, self.W.shape[1]):
            raise BadRequest(
                f"A trained rounding needs each input column coded by one grid, and {why}; start it from another rounding."
            )
        return Coder((self.W.shape[0], self.W.shape[1]), bands, tuple(t.params for t in self.coded))

    @property
    def others(self) -> Terms:
        return tuple(t for t in self.start if not isinstance(t, Coded))

    @property
    def rest(self) -> Float[Tensor, "out inp"]:
        """What the codes have to stand for: the weights less the other terms."""
        return self.W - decode(self.others) if self.others else self.W

    @property
    def origin(self) -> Float[Tensor, "out inp"]:
        """The weights, except where the start chose another point than the nearest: there, that point. It rounds to the start, and
        tells for every other weight how near it is to its neighbours."""
        begun, nearest = decode(self.coded), decode(self.coder.terms(self.rest))
        return torch.where(begun == nearest, self.rest, begun.to(self.W.dtype))

    def whole(self, coded: Float[Tensor, "out inp"]) -> Float[Tensor, "out inp"]:
        """The matrix with codes that decode to this."""
        return coded + decode(self.others) if self.others else coded

    def terms(self, coder: Coder, What: Float[Tensor, "out inp"]) -> Terms:
        """The terms of a matrix whose coded part is nearest to `What`."""
        return self.with_codes(coder.terms(What))

    def with_codes(self, coded: Sequence[Coded]) -> Terms:
        """These in place of the coded terms, in the order of the start."""
        given = iter(coded)
        return tuple(next(given) if isinstance(t, Coded) else t for t in self.start)


@dataclass(frozen=True, eq=False)
class Problem:
    """`loss(weights, k)`: a scalar on batch k, differentiable in the weights, and in the ranges of `inputs` that are learned;
    `batches` to train on, then `held` to judge by."""

    subjects: Mapping[str, Subject]
    loss: Callable[[Weights, int], Tensor]
    batches: int
    held: int
    notes: list[str] = field(default_factory=list)
    inputs: Mapping[str, Inputs] = field(default_factory=dict)  # where the loss quantizes what the matrices multiply

    @cached_property
    def first(self) -> float:
        """The loss of the start, on the batches for judging."""
        return self.judged({name: subject.start for name, subject in self.subjects.items()})

    def judged(self, terms: Mapping[str, Terms]) -> float:
        """The loss of what is stored, on batches that were not trained on (on all where none is held back)."""
        weights = {name: decode(found) for name, found in terms.items()}
        where = range(self.batches, self.batches + self.held) if self.held else range(self.batches)
        with torch.no_grad():
            return sum(float(self.loss(weights, k)) for k in where) / len(where)

    def note(self, remark: str) -> None:
        if remark not in self.notes:
            self.notes.append(remark)


def untrainable(metas: Sequence[Mapping[str, Json]], inp: int) -> str | None:
    """None, or in words why terms like these cannot be trained, before there are any: as many columns are coded as there are."""
    columns = [inp if meta["columns"] is None else meta["columns"] for meta in metas if meta["kind"] == "coded"]
    if not columns:
        return "a trained rounding moves codes on a grid, and what it starts from holds none"
    return None if sum(columns) == inp else "a trained rounding needs each input column coded by one grid, once"
