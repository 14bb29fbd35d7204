"""The protocol of a format: models go out through `write` and come back through `open`, matrix by matrix, always as terms.

    compress -> native directory -> Opened -> write -> other format -> open -> Opened -> modules, ledger, write ...

So n formats need n readers and n writers, and whatever two of them can both hold converts exactly. What a format cannot hold it
refuses by name and in words, from the metas alone, before a weight is read; its bytes are foretold the same way, so a plan's price
is that of the file. Every export is opened again and compared with its source (`verify`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright import index
from bitwright.errors import BadRequest, BrokenPromise
from bitwright.progress import Progress
from bitwright.terms.base import Json, Terms, decode

Metas = Sequence[Mapping[str, Json]]
Kept = tuple[tuple[int, ...], torch.dtype]  # shape and type of a tensor that is stored as it is


@dataclass(frozen=True, eq=False)
class Model:
    """What a format must know of a model before a weight is read: its configuration (config.json as it was before compression),
    the metas of every compressed matrix, the tensors that stay as they are, and the files that go with it (its tokenizer)."""

    config: Mapping[str, Json]
    metas: Mapping[str, Metas]
    kept: Mapping[str, Kept]
    tied_head: str | None = None  # name of an output head that reads the embedding's terms
    companions: Sequence[Path] = ()


@dataclass(frozen=True)
class Entry:
    """One stored tensor; `site` is the matrix it is a part of (None: stored as it was)."""

    name: str
    site: str | None
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @classmethod
    def list(cls, stored: Mapping[str, Kept], metas: Mapping[str, Metas]) -> list["Entry"]:
        """All tensors of a directory; those of a matrix begin with its name."""
        found = []
        for name, (shape, dtype) in stored.items():
            site = next((head for head in prefixes(name) if head in metas), None)
            found.append(cls(name, site, str(dtype).removeprefix("torch."), shape, dtype.itemsize * prod(shape)))
        return found


def prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


@dataclass(frozen=True, eq=False)
class Opened:
    """A compressed model on disk. `terms` and `tensor` read one matrix, or one other tensor, when they are called; `entries` are
    all its tensors as they are stored."""

    model: Model
    terms: Callable[[str], Terms]
    tensor: Callable[[str], Tensor]
    entries: Sequence[Entry]
    companions: Sequence[Path] = ()  # tokenizer, generation settings, licence: copied as they are
    document: Mapping[str, Json] = field(default_factory=dict)  # bitwright.json, where there is one


@runtime_checkable
class Format(Protocol):
    def refusal(self, model: Model) -> str | None:
        """One sentence with cause and remedy where the format cannot hold this model exactly; None where it can."""

    def remarks(self, model: Model) -> list[str]:
        """What a user should know who serves it: which kernel takes which layers, and which layers none takes."""

    def bits(self, name: str, metas: Metas) -> int:
        """Stored bits of one matrix in this format, all its tensors counted."""

    def kept_bytes(self, name: str, kept: Kept) -> int:
        """Stored bytes of a tensor that is not compressed."""

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        """The whole model into an existing directory. Assumes that `refusal` is None."""

    def recognises(self, root: Path) -> bool:
        """Whether a directory or file is of this format, by its configuration alone."""

    def open(self, root: Path) -> Opened:
        """Raises BadRequest, in one sentence, for a file that is damaged or holds what this version does not know."""


def format_of(root: Path) -> Format | None:
    """The format of a compressed model on disk; None where it is not compressed. Raises BadRequest for one that nobody knows."""
    for name in index.PARTS["formats"]:
        found: Format = index.resolve("formats", name)()
        if found.recognises(root):
            return found
    return None


def bytes_of(form: Format, model: Model) -> int:
    """Of all tensors of a model in a format."""
    coded = sum(form.bits(name, metas) for name, metas in model.metas.items()) // 8
    return coded + sum(form.kept_bytes(name, kept) for name, kept in model.kept.items())


def verify(source: Opened, written: Opened, progress: Progress) -> None:
    """Every matrix decodes to the same numbers, every other tensor is the same. Raises BrokenPromise with the first that is not."""
    if set(source.model.metas) != set(written.model.metas):
        odd = sorted(set(source.model.metas) ^ set(written.model.metas))
        raise BrokenPromise(f"The export does not hold the same matrices as its source: {odd[0]} is in one of them only.")
    for i, name in enumerate(source.model.metas):
        if not torch.equal(decode(source.terms(name)), decode(written.terms(name))):
            raise BrokenPromise(f"{name} does not read back from the export as it was written: a fault of bitwright.")
        progress("reading back", i + 1, len(source.model.metas))
    for name in source.model.kept:
        one, other = source.tensor(name), written.tensor(name)
        if not torch.equal(one.to(other.dtype) if one.is_floating_point() else one, other):
            raise BrokenPromise(f"{name} does not read back from the export as it was written: a fault of bitwright.")


def export(source: Opened, form: Format, out: Path, progress: Progress) -> list[str]:
    """Write a compressed model in another format and read it back; the remarks of the format. Raises BadRequest where it cannot."""
    if why := form.refusal(source.model):
        raise BadRequest(why)
    form.write(source, out, progress)
    verify(source, form.open(out), progress)
    return form.remarks(source.model)
