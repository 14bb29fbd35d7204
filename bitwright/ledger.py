"""The ledger of a compressed model: every tensor as it lies in the files, and that the sum is what the report says."""

from pathlib import Path

from bitwright.errors import BrokenPromise
from bitwright.export.base import Entry, open_compressed


def ledger(root: Path) -> list[Entry]:
    """All tensors. Raises BadRequest where this is no compressed model, BrokenPromise where a report says other bytes."""
    opened = open_compressed(root)
    said, total = opened.document.get("report", {}).get("bytes"), sum(e.bytes for e in opened.entries)
    if said is not None and said != total:
        raise BrokenPromise(f"The ledger of {root} says {said:,} bytes, its tensors hold {total:,}; compress it again.")
    return list(opened.entries)
