"""The protocol of a format: models go out through `write` and come back through `open`, matrix by matrix, always as terms.

    compress -> native directory -> Opened -> write -> other format -> open -> Opened -> modules, ledger, write ...

So n formats need n readers and n writers, and whatever two of them can both hold converts exactly. What a format cannot hold it
refuses by name and in words, from the metas alone, before a weight is read; its bytes are foretold the same way, so a plan's price
is that of the file. Every export is opened again and compared with its source (`verify`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright import index
from bitwright.activations.base import Activation
from bitwright.errors import WRONG, BadRequest, BrokenPromise, in_a_line
from bitwright.export.configuration import method
from bitwright.grids.base import Params
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
    inputs: Mapping[str, Activation] = field(default_factory=dict)  # how the inputs of a matrix are quantized, where they are
    companions: Sequence[Path] = ()  # files beside the weights: tokenizer, generation settings, licence; copied as they are
    stack: Sequence[str] = ()  # the matrices in the order in which they get one term more, where any prefix of that is a model


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
    """A compressed model on disk. `terms`, `tensor` and `scales` read one matrix, one other tensor, or what is stored of a matrix's
    inputs, when they are called; `entries` are all its tensors as they are stored."""

    model: Model
    terms: Callable[[str], Terms]
    tensor: Callable[[str], Tensor]
    entries: Sequence[Entry]
    document: Mapping[str, Json] = field(default_factory=dict)  # bitwright.json, where there is one
    scales: Callable[[str], Params] = lambda site: {}


@runtime_checkable
class Format(Protocol):
    def refusal(self, model: Model) -> str | None:
        """One sentence with cause and remedy where the format cannot hold this model exactly; None where it can."""

    def remarks(self, model: Model) -> list[str]:
        """What a user should know who serves it: which kernel takes which layers, and which layers none takes."""

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        """Stored bits of one matrix in this format, all its tensors counted, and what is stored of its inputs. Raises BadRequest
        where it cannot hold it."""

    def kept_bytes(self, name: str, kept: Kept) -> int:
        """Stored bytes of a tensor that is not compressed."""

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        """The whole model into an existing directory. Assumes that `refusal` is None."""

    def recognises(self, root: Path) -> bool:
        """Whether a directory or file is of this format, by its configuration alone."""

    def open(self, root: Path) -> Opened:
        """Raises BadRequest, in one sentence, for a file that is damaged or holds what this version does not know."""


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """The one door for files that others wrote: whatever a reader stumbles over there, the user hears that the file is damaged."""
    try:
        yield
    except WRONG as error:
        why = in_a_line(error)
        raise BadRequest(f"{root} is damaged or not what its configuration says ({why}); download or write it again.") from error


def format_of(root: Path) -> Format | None:
    """The format of a compressed model on disk; None where it is not compressed. Raises BadRequest for one that nobody knows."""
    for name in index.FORMATS:
        found: Format = index.form(name)
        if found.recognises(root):
            return found
    if (told := method(root)) is not None:
        known = ", ".join(index.FORMATS)
        raise BadRequest(f"{root} is quantized by the method {told!r}, which is not read (known: {known}); dequantize it first.")
    return None


def open_compressed(root: Path, form: Format | None = None) -> Opened:
    """A compressed model of any known format, with readers that raise nothing but BadRequest. Raises it too where there is none."""
    form = form or format_of(root)
    if form is None:
        raise BadRequest(f"{root} is not a compressed model; give what `bitwright compress` or another tool wrote.")
    with reading(root):
        found = form.open(root)

    def guarded(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def careful(name: str) -> Any:
            with reading(root):
                return read(name)

        return careful

    return replace(found, terms=guarded(found.terms), tensor=guarded(found.tensor), scales=guarded(found.scales))


def bytes_of(form: Format, model: Model) -> int:
    """Of all tensors of a model in a format."""
    coded = sum(form.bits(name, metas, model.inputs.get(name)) for name, metas in model.metas.items()) // 8
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
    for name in source.model.inputs:
        one, other = source.scales(name), written.scales(name)
        if set(one) != set(other) or any(not torch.equal(one[leaf].view(-1), other[leaf].view(-1)) for leaf in one):
            raise BrokenPromise(f"The inputs of {name} do not read back from the export as they were: a fault of bitwright.")
    for name in source.model.kept:
        before, after = source.tensor(name), written.tensor(name)
        if not torch.equal(before.to(after.dtype) if before.is_floating_point() else before, after):
            raise BrokenPromise(f"{name} does not read back from the export as it was written: a fault of bitwright.")


def export(source: Opened, form: Format, out: Path, progress: Progress) -> list[str]:
    """Write a compressed model in another format and read it back; the remarks of the format. Raises BadRequest where it cannot."""
    if why := form.refusal(source.model):
        raise BadRequest(why)
    form.write(source, out, progress)
    verify(source, open_compressed(out, form), progress)
    return form.remarks(source.model)
