"""The statistics store: moments of a model's inputs on a data set, on disk, for any number of later runs.

What is stored are the moments of the *float* model at every site and at the output head, which no recipe changes. The runs
that use them read no data, run no model, and calibrate every layer on float inputs (the report says so). One safetensors file
per tap, in a folder named by a hash of the model and, below it, one of the data. Beside them: gradients, one file per site
(`sites/`), and matrices that a probe has already rounded (`codes/`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from bitwright.calibrate.stats import Known
from bitwright.calibrate.stream import Tap
from bitwright.checkpoint import header
from bitwright.errors import BadRequest, in_place_of
from bitwright.saving import save_file

HEAD = Tap(("head",))


@dataclass(frozen=True)
class Store:
    """Statistics of a model (`model`: its fingerprint) below `root`, on the data of hash `data` or on the only data there is."""

    root: Path
    model: str
    data: str | None

    @property
    def folder(self) -> Path:
        """Raises BadRequest where no data is named and there is not exactly one data set."""
        model = self.root / hashlib.sha256(self.model.encode()).hexdigest()[:16]
        if self.data is not None:
            return model / self.data[:16]
        found = sorted(model.iterdir()) if model.is_dir() else []
        if len(found) != 1:
            raise BadRequest(f"{self.root} knows this model on {len(found)} data sets, not on one; give the data with --data.")
        return found[0]

    def taps(self, block: int) -> list[Tap]:
        """The taps of a block in the order of their calls; none where the block was not collected."""
        path = self.folder / f"{block}.json"
        return [Tap(tuple(readers)) for readers in json.loads(path.read_text())] if path.is_file() else []

    def known(self, tap: Tap, needs: Sequence[str]) -> Known:
        """The statistics of a tap. Raises KeyError where one of those needed is missing."""
        values = self.values(tap)
        return Known({name: values[name] for name in needs})

    def values(self, tap: Tap) -> dict[str, torch.Tensor]:
        path = self.folder / f"{tap.name}.safetensors"
        return load_file(path) if path.is_file() else {}

    def names(self, tap: Tap) -> set[str]:
        """Of the statistics of a tap, without reading them."""
        path = self.folder / f"{tap.name}.safetensors"
        return {name for name, _, _ in header(path)} if path.is_file() else set()

    def has(self, block: int, needs: Sequence[str]) -> bool:
        taps = self.taps(block)
        return bool(taps) and all(set(needs) <= self.names(tap) for tap in taps)

    def full(self, blocks: int, needs: Sequence[str]) -> bool:
        return all(self.has(i, needs) for i in range(blocks)) and bool(self.names(HEAD))

    def put(self, tap: Tap, known: Known) -> None:
        with in_place_of(self.folder / f"{tap.name}.safetensors") as partial:
            save_file(self.values(tap) | {n: v.contiguous().cpu() for n, v in known.values.items()}, partial)

    def site(self, name: str) -> dict[str, torch.Tensor]:
        """Statistics of a site by itself: its gradients; {} where there are none."""
        path = self.folder / "sites" / f"{name}.safetensors"
        return load_file(path) if path.is_file() else {}

    def put_site(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        with in_place_of(self.folder / "sites" / f"{name}.safetensors") as partial:
            save_file({n: v.contiguous() for n, v in values.items()}, partial)

    def with_own(self, name: str, known: Known, needs: Sequence[str], device: torch.device) -> Known:
        """What is known of a site's input, and of the site by itself where that is needed."""
        own = {n: t.to(device) for n, t in self.site(name).items() if n in needs} if set(needs) - set(known.values) else {}
        return Known({**known.values, **own}, known.notes, known.derived) if own else known

    def codes(self, key: str) -> Path:
        """Where a matrix that a probe has rounded is kept."""
        return self.folder / "codes" / f"{key}.safetensors"

    def close(self, block: int, taps: Sequence[Tap]) -> None:
        """Declare a block complete."""
        with in_place_of(self.folder / f"{block}.json") as partial:
            partial.write_text(json.dumps([tap.readers for tap in taps]))
