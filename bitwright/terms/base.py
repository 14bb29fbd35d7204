"""The protocol of a term, and what holds for a sum of them.

A term is what is stored: `tensors()` are the bytes, `meta()` is everything else, and `spec(meta)` foretells names, shapes and
types of the tensors from the meta alone. The ledger is computed from `spec`, so a dry run, an allocation's price, the loader's
empty modules and the written file cannot disagree.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright import index
from bitwright.errors import BadRequest

Json = Any
Spec = dict[str, tuple[tuple[int, ...], torch.dtype]]


@runtime_checkable
class Term(Protocol):
    """A summand of a compressed matrix."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def decode(self) -> Float[Tensor, "out inp"]:
        """The matrix this term stands for, fp32: what is stored is what is judged."""

    def tensors(self) -> dict[str, Tensor]:
        """What is written to disk, packed."""

    def meta(self) -> dict[str, Json]:
        """What a loader must know besides the tensors; its `kind` names the class in index.py."""

    @classmethod
    def spec(cls, meta: Mapping[str, Json]) -> Spec:
        """Shapes and types of `tensors()`, from the meta alone."""

    @classmethod
    def load(cls, meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Term":
        """Inverse of (`meta`, `tensors`)."""


Terms = tuple[Term, ...]


def decode(terms: Terms) -> Float[Tensor, "out inp"]:
    """The sum of the terms."""
    total = terms[0].decode()
    for term in terms[1:]:
        total = total + term.decode()
    return total


def spec(meta: Mapping[str, Json]) -> Spec:
    return index.resolve("terms", meta["kind"]).spec(meta)


def load(meta: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> Term:
    """The term of a meta and its tensors. Raises BadRequest where these name places that the matrix does not have."""
    placed(meta, tensors)
    return index.resolve("terms", meta["kind"]).load(meta, tensors)


def placed(meta: Mapping[str, Json], stored: Mapping[str, Tensor]) -> None:
    """That the columns which a term names are columns of the matrix, and its rows end one after the other at the last entry."""
    places = [stored[leaf].long() for leaf in ("columns", "places") if leaf in stored]
    sound = all(bool(((place >= 0) & (place < meta["shape"][1])).all()) for place in places)
    if "ends" in stored:
        ends = torch.nn.functional.pad(stored["ends"].long(), (1, 0))
        sound &= bool((ends.diff() >= 0).all()) and int(ends[-1]) == meta["count"]
    if not sound:
        raise BadRequest("A term names places that its matrix does not have; the file is damaged, download the model again.")


def stored_bits(terms: Terms | tuple[Mapping[str, Json], ...]) -> int:
    """Bits on disk of terms, or of terms that do not exist yet, given their metas."""
    metas = [term if isinstance(term, Mapping) else term.meta() for term in terms]
    return sum(8 * dtype.itemsize * prod(shape) for meta in metas for shape, dtype in spec(meta).values())
