"""The ledger of a compressed directory: every tensor as it lies in the files, and that the sum is what the report says."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from bitwright.checkpoint import header, weight_files
from bitwright.errors import BadRequest, BrokenPromise


@dataclass(frozen=True)
class Entry:
    """One stored tensor; `site` is the matrix it is a part of (None: stored as it was)."""

    name: str
    site: str | None
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def ledger(directory: Path) -> list[Entry]:
    """All tensors. Raises BadRequest where this is no compressed directory, BrokenPromise where the bytes do not add up."""
    path = directory / "bitwright.json"
    if not path.is_file():
        raise BadRequest(f"{directory} has no bitwright.json; give a directory that `bitwright compress` wrote.")
    found = []
    for file in weight_files(directory):
        for name, shape, dtype in header(file):
            site = name.split(".terms.")[0] if ".terms." in name else None
            found.append(Entry(name, site, str(dtype).removeprefix("torch."), shape, dtype.itemsize * prod(shape)))
    said, total = json.loads(path.read_text())["report"]["bytes"], sum(e.bytes for e in found)
    if said != total:
        raise BrokenPromise(f"The ledger of {directory} says {said:,} bytes, its tensors hold {total:,}; compress it again.")
    return found
