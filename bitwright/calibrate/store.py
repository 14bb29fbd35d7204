"""The statistics store: second moments of a model on a data set, on disk, for any number of later runs.

What is stored are the moments of the *float* model's inputs, which no recipe changes; a run that uses the store therefore
calibrates every layer on float inputs (the report says so), reads no data and runs no model once the store is full.
One safetensors file per tap; the folder's name is a hash of model, data and nothing else.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from bitwright.calibrate.stats import Known
from bitwright.calibrate.stream import Tap


@dataclass(frozen=True)
class Store:
    """Statistics of one model (`model`: its fingerprint) on one data set (`data`: its hash) below `root`."""

    root: Path
    model: str
    data: str

    @property
    def folder(self) -> Path:
        return self.root / hashlib.sha256(f"{self.model} {self.data}".encode()).hexdigest()[:16]

    def taps(self, block: int) -> list[Tap] | None:
        """The taps of a block in the order of their calls; None where the block is not complete."""
        path = self.folder / f"{block}.json"
        return [Tap(tuple(readers)) for readers in json.loads(path.read_text())] if path.is_file() else None

    def known(self, tap: Tap, needs: Sequence[str]) -> Known | None:
        """The statistics of a tap; None where one of those needed is missing."""
        path = self.folder / f"{tap.name}.safetensors"
        values = load_file(path) if path.is_file() else {}
        return Known({name: values[name] for name in needs}) if set(needs) <= set(values) else None

    def has(self, block: int, needs: Sequence[str]) -> bool:
        taps = self.taps(block)
        return taps is not None and all(self.known(tap, needs) is not None for tap in taps)

    def put(self, tap: Tap, known: Known) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{tap.name}.safetensors"
        kept = load_file(path) if path.is_file() else {}
        partial = path.with_suffix(".partial")
        save_file({**kept, **{n: v.contiguous() for n, v in known.values.items()}}, partial)
        partial.replace(path)

    def close(self, block: int, taps: Sequence[Tap]) -> None:
        """Declare a block complete."""
        (self.folder / f"{block}.json").write_text(json.dumps([tap.readers for tap in taps]))
