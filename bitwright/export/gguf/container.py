"""A GGUF file as metadata and named tensors; the bytes of a tensor are mapped when they are asked for.

The file is not trusted: whatever its bytes, `read` gives a Container whose tensors lie inside the file, aligned and apart, or says
in one sentence what is wrong. Metadata numbers keep their stored type (numpy scalars and arrays), so that what was read can be
written again as it was (writer.py); `int()` and `.tolist()` make plain values of them.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.export.gguf.cursor import Cursor, shown
from bitwright.export.gguf.types import ALIGNMENT, ALIGNMENT_KEY, KINDS, MAGIC, MAX_DIMS, NAMES, VERSIONS

# the least that one of them takes: a metadata pair of an empty key, a type and a byte; a tensor without name, of one dimension
PAIR, INFO = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class Info:
    """A tensor as the file announces it. `shape`: rows first, inputs last; `offset`: from the start of the file. Of a type that
    this version does not know ("unknown 99") the size is None and the bytes are not given."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int | None


@dataclass(frozen=True, eq=False)
class Container:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Info]
    alignment: int

    def data(self, name: str) -> UInt8[Tensor, "rows nbytes"]:
        """The bytes of a tensor, a row for each row of weights, on a private map: writing to them leaves the file alone."""
        if name not in self.tensors:
            raise BadRequest(f"{self.path} has no tensor {shown(name)}; it has {len(self.tensors)} others, see its list.")
        info = self.tensors[name]
        if info.nbytes is None:
            raise BadRequest(
                f"{shown(name)} in {self.path} has the type {info.type}, which this version cannot read; "
                "convert the file to another type, or update bitwright."
            )
        rows = prod(info.shape[:-1])
        try:
            stored = np.memmap(self.path, np.uint8, "c", info.offset, (rows, info.nbytes // rows))
        except (OSError, ValueError) as error:
            raise BadRequest(f"{self.path} cannot be read any more ({error}); has it changed since it was opened?") from None
        return torch.from_numpy(stored)


def read(path: str | Path) -> Container:
    """Raises BadRequest, in one sentence, for anything that is not a whole little-endian GGUF file of version 2 or 3."""
    path = Path(path)
    if not path.is_file():
        raise BadRequest(f"There is no file {path}; give a GGUF file.")
    if path.stat().st_size == 0:
        raise BadRequest(f"{path} is empty; download or write it again.")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(Cursor(data, path))
    except OSError as error:
        raise BadRequest(f"{path} cannot be read ({error.strerror}); give a GGUF file that can.") from None


def parse(head: Cursor) -> Container:
    tensor_count, pair_count = opening(head)
    head.room(pair_count, PAIR, f"the list of {pair_count} metadata values")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = head.text("a metadata key")
        if key in metadata:
            head.damaged(f"the metadata key {shown(key)} appears twice")
        metadata[key] = head.value(head.u32("a value type"), f"the metadata value {shown(key)}")

    alignment = metadata.get(ALIGNMENT_KEY, np.uint32(ALIGNMENT))
    if not isinstance(alignment, np.uint32) or alignment.bit_count() != 1:
        head.damaged(f"{ALIGNMENT_KEY} is not a power of two of type uint32")

    head.room(tensor_count, INFO, f"the list of {tensor_count} tensors")
    announced: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = head.text("a tensor name")
        if name in announced:
            head.damaged(f"the tensor {shown(name)} appears twice")
        announced[name] = announcement(head, name)
    start = -(-head.at // int(alignment)) * int(alignment)
    tensors = {name: place(head, name, start, int(alignment), *told) for name, told in announced.items()}
    apart(head, tensors)
    return Container(head.path, metadata, tensors, int(alignment))


def opening(head: Cursor) -> tuple[int, int]:
    """The counts of tensors and of metadata values."""
    if head.data[:4] != MAGIC:
        if head.size < 4 and head.data[:4] == MAGIC[: head.size]:
            head.room(4, 1, "the magic")
        raise BadRequest(f"{head.path} is not a GGUF file, it does not begin with {MAGIC.decode()}; give a file of llama.cpp.")
    head.at = 4
    version = head.u32("the version")
    if version & 0xFFFF == 0 and version:  # a small number in the other byte order
        raise BadRequest(f"{head.path} is a big-endian GGUF file; convert it to little-endian first (gguf_convert_endian).")
    if version not in VERSIONS:
        raise BadRequest(
            f"{head.path} is GGUF of version {version}, and versions {VERSIONS[0]} and {VERSIONS[1]} are read; "
            "convert the model again with a current llama.cpp."
        )
    return head.u64("the number of tensors"), head.u64("the number of metadata values")


def announcement(head: Cursor, name: str) -> tuple[tuple[int, ...], int, int]:
    """Shape, type number and offset within the data. The file lists the input dimension first."""
    what = f"the description of the tensor {shown(name)}"
    n_dims = head.u32(what)
    if not 1 <= n_dims <= MAX_DIMS:
        head.damaged(f"the tensor {shown(name)} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
    shape = tuple(head.u64(what) for _ in range(n_dims))[::-1]
    if 0 in shape:
        head.damaged(f"the tensor {shown(name)} has a dimension of 0")
    return shape, head.u32(what), head.u64(what)


def place(head: Cursor, name: str, start: int, alignment: int, shape: tuple[int, ...], kind: int, offset: int) -> Info:
    """Where a tensor lies, if it lies inside the file."""
    if offset % alignment:
        head.damaged(f"the tensor {shown(name)} begins at {offset} of the data, which is not aligned to {alignment} bytes")
    begin = start + offset
    if kind not in NAMES:
        if begin >= head.size:
            head.damaged(f"the tensor {shown(name)} begins at byte {begin}, outside the file of {head.size} bytes")
        return Info(name, shape, f"unknown {kind}", begin, None)
    _, weights, size = KINDS[NAMES[kind]]
    if shape[-1] % weights:
        head.damaged(
            f"the tensor {shown(name)} has rows of {shape[-1]} weights, which are not whole {NAMES[kind]} blocks of {weights}"
        )
    nbytes = prod(shape) // weights * size
    if begin + nbytes > head.size:
        raise BadRequest(
            f"{head.path} is truncated or damaged: the tensor {shown(name)} ends at byte {begin + nbytes}, "
            f"but the file has {head.size} bytes; download or write it again."
        )
    return Info(name, shape, NAMES[kind], begin, nbytes)


def apart(head: Cursor, tensors: Mapping[str, Info]) -> None:
    """That no byte belongs to two tensors. One of unknown size takes at least a byte."""
    in_order = sorted(tensors.values(), key=lambda info: info.offset)
    for first, second in pairwise(in_order):
        if first.offset + (first.nbytes or 1) > second.offset:
            head.damaged(f"the tensors {shown(first.name)} and {shown(second.name)} overlap")
