"""The code file: one safetensors file with the codes, the codec that made them, and a header that says what they are.

    codes      uint8 [blocks, pairs, 32]   as they are scanned (kernels/scanning.py), so the file is mapped and not read
    factor     fp16 [n]                    where the codec has factors
    ids        int64 [n]                   where they are not 0, 1, 2, ...
    names, name_ends                       where ids are text (names.py)
    cells.*                                 where documents lie in cells (partition.py): centres, ends of rows
    codec.view.*, codec.book.*             what is seen of a vector (views.py), and the points

The header (`bitwright` in the metadata) is JSON: format, space_id, count, dim, bits, view, metric, scale, name, layout, model, the
spaces these codes may be mixed with, and whatever was measured. A file is written beside its place and moved there whole: at
any moment the place holds the old file or the new one, and who has mapped the old one keeps it. Writers into a folder wait for
each other; one that would undo what another has written since it read the file is refused.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float16, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitwright.embed.codec import Codec
from bitwright.embed.names import Names
from bitwright.embed.partition import Cells
from bitwright.embed.views import below
from bitwright.errors import WRONG, BadRequest, in_a_line
from bitwright.kernels.scanning import BLOCK, Blocked
from bitwright.saving import save_file
from bitwright.terms.base import Json

FORMAT = 1
TYPES = {"codes": torch.uint8, "factor": torch.float16, "ids": torch.int64, "names": torch.uint8, "name_ends": torch.int64}
LAYOUT = f"blocks of {BLOCK} documents; low half of byte i of row p: nibble 2p of document i, high half: nibble 2p + 1"


Stamp = tuple[int, ...]


def stamp(path: Path) -> Stamp:
    """Which file lies at a place; a new one where it was replaced."""
    if not path.exists():
        return ()
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def replacing(path: Path, since: Stamp | None) -> Iterator[Path]:
    """A place for a new file, which is at `path` in the end. The lock lies on the folder and ends with the process, however that
    ends; the place is in a folder of its own, for writers make files beside it, and the next writer removes what is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, beside = os.open(path.parent, os.O_RDONLY), path.with_name(f".{path.name}.new")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(beside, ignore_errors=True)
        if since is not None and since != stamp(path):
            raise BadRequest(f"{path} was changed by another process since it was read; nothing was written, so repeat this.")
        beside.mkdir()
        yield beside / "new"
        with (beside / "new").open("rb") as written:
            os.fsync(written.fileno())
        (beside / "new").replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        os.close(lock)


@dataclass(frozen=True, eq=False)
class CodeFile:
    """All that a file of codes holds. `about`: model, compatible (space ids), measured (recall and the like)."""

    codec: Codec
    codes: Blocked
    factor: Float16[Tensor, "n"] | None = None
    ids: Int64[Tensor, "n"] | None = None
    names: Names | None = None
    cells: Cells | None = None
    about: Mapping[str, Json] = field(default_factory=dict)

    def header(self) -> dict[str, Json]:
        codec = self.codec
        told: dict[str, Json] = {"format": FORMAT, "space_id": codec.space_id, "count": self.codes.count, "dim": codec.dim}
        told |= {} if self.cells is None else {"cells": len(self.cells.centres), "probes": self.cells.probes}
        return {**told, "bits": codec.bits, "layout": LAYOUT, **codec.meta(), "about": dict(self.about)}

    def save(self, path: Path, since: Stamp | None = None) -> Stamp:
        """`since`: as the file was when it was read. Raises BadRequest where it has changed or the place cannot be written; what
        was there stays."""
        tensors = {"codes": self.codes.data} | {f"codec.{name}": tensor for name, tensor in self.codec.tensors().items()}
        tensors |= {name: t for name, t in (("factor", self.factor), ("ids", self.ids)) if t is not None}
        if self.names is not None:
            tensors |= {"names": self.names.text, "name_ends": self.names.ends}
        if self.cells is not None:
            tensors |= {f"cells.{name}": tensor for name, tensor in self.cells.tensors().items()}
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            with replacing(path, since) as place:
                save_file(whole, place, {"bitwright": json.dumps(self.header())})
                return stamp(place)
        except (OSError, SafetensorError) as error:
            raise BadRequest(f"Cannot write {path}: {in_a_line(error)}; make room or choose another place.") from None

    @classmethod
    def open(cls, path: Path) -> "CodeFile":
        """Mapped: nothing but the header and the codec is read. Raises BadRequest for a file that is damaged or not one of ours."""
        if not path.is_file():
            raise BadRequest(f"There is no file {path}; make one with `bitwright index build`.")
        seen = stamp(path)
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["bitwright"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = cls.from_parts(header, tensors)
            if stamp(path) == seen:
                return found
        except (*WRONG, SafetensorError, OSError) as error:
            if stamp(path) == seen and isinstance(error, KeyError) and error.args == ("bitwright",):
                raise BadRequest(f"{path} is a safetensors file but holds no codes of bitwright; name a file of codes.") from None
            if stamp(path) == seen:
                raise BadRequest(f"{path} is damaged or no file of codes ({in_a_line(error)}); build it again.") from None
        return cls.open(path)  # it was replaced meanwhile, and safetensors opens a file twice: header and codes may be of two

    @classmethod
    def from_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "CodeFile":
        if header["format"] != FORMAT:
            raise ValueError(f"it has format {header['format']} and this version reads {FORMAT}")
        codec = Codec.of(below(tensors, "codec"), header)
        if codec.space_id != header["space_id"]:
            raise ValueError("the codec is not the one that the codes were made with")
        for name, dtype in TYPES.items():
            if name in tensors and tensors[name].dtype != dtype:
                raise ValueError(f"{name} are {tensors[name].dtype}, not {dtype}")
        codes = Blocked(tensors["codes"], header["count"])
        if codes.tables // 2 != -(-len(codec.book.starts) // 2):
            raise ValueError(f"{codes.tables} nibbles a document for a codec of {len(codec.book.starts)}")
        names = Names(tensors["names"], tensors["name_ends"]) if "names" in tensors else None
        factor, ids = tensors.get("factor"), tensors.get("ids")
        for name, found in (("factors", factor), ("ids", ids), ("names", names)):
            if found is not None and len(found) != codes.count:
                raise ValueError(f"{len(found)} {name} for {codes.count} documents")
        cells = None
        if "probes" in header:
            cells = Cells(tensors["cells.centres"], tensors["cells.ends"], header["probes"])
            shapes = cells.centres.shape == (len(cells.ends), codec.book.dims) and 1 <= cells.probes <= len(cells.ends)
            if (
                not shapes
                or int(cells.ends[-1]) != codes.count
                or bool((cells.ends.diff(prepend=cells.ends.new_zeros(1)) < 0).any())
            ):
                raise ValueError(f"the cells do not hold {codes.count} documents")
        return cls(codec, codes, factor, ids, names, cells, header["about"])
