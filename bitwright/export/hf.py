"""A Hugging Face directory as a set of named tensors: read one by one, written shard by shard. Formats that live in one share this.

`config.json` carries the `quantization_config`; everything else of the directory is as transformers has it.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitwright.checkpoint import SHARDED, WEIGHTS, header, weight_files
from bitwright.errors import BadRequest, in_a_line, writing
from bitwright.export.base import Kept, Opened
from bitwright.export.configuration import configuration, read_json
from bitwright.progress import Progress
from bitwright.saving import save_file
from bitwright.terms.base import Json

SHARD = 4 * 10**9  # bytes from which on a new file begins
OURS = {"config.json", SHARDED, "bitwright.json", "training.json", "README.md"}  # not copied to an export


@dataclass(frozen=True, eq=False)
class Files:
    """The tensors of a directory by name; opening it checks every header against the bytes that are there."""

    root: Path
    config: dict[str, Json]
    kept: Mapping[str, Kept]
    where: Mapping[str, Path]

    @classmethod
    def of(cls, root: Path) -> "Files":
        kept, where = {}, {}
        for path in weight_files(root):
            for name, shape, dtype in header(path):
                kept[name], where[name] = (shape, dtype), path
        return cls(root, configuration(root), kept, where)

    def tensor(self, name: str) -> Tensor:
        return self.tensors([name])[name]

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Each file is opened once: its header takes longer to read than a small tensor."""
        found: dict[str, Tensor] = {}
        for path, here in groupby(sorted(names, key=self.where.__getitem__), key=self.where.__getitem__):
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_tensor(name).clone() for name in here}
            except (SafetensorError, OSError) as error:
                raise BadRequest(f"Tensors cannot be read from {path} ({in_a_line(error)}); download it again.") from None
        return found

    def below(self, site: str) -> dict[str, Kept]:
        """Tensors of a module by their last name."""
        return {n.removeprefix(f"{site}."): k for n, k in self.kept.items() if n.rpartition(".")[0] == site}

    def plain(self) -> dict[str, Json]:
        """The configuration as it was before compression."""
        return {key: value for key, value in self.config.items() if key != "quantization_config"}

    def companions(self) -> list[Path]:
        return beside(self.root)

    def document(self) -> dict[str, Json]:
        return document(self.root)


def beside(root: Path) -> list[Path]:
    """Tokenizer, generation settings, licence."""
    kinds = {".json", ".txt", ".model", ".jinja"}
    return sorted(p for p in root.iterdir() if p.name not in OURS and (p.suffix in kinds or p.name.startswith("LICENSE")))


def document(root: Path) -> dict[str, Json]:
    """bitwright.json, where there is one. Raises BadRequest where its report has no number of bytes to compare with."""
    path = root / "bitwright.json"
    found = read_json(path, "remove it, or compress the model again") if path.is_file() else {}
    report = found.get("report", {})
    if not isinstance(report, dict) or not isinstance(report.get("bytes", 0), int):
        raise BadRequest(f"{path} holds no report of bitwright; remove it, or compress the model again.")
    return found


def copy(paths: Iterable[Path], out: Path) -> None:
    with writing(out):
        for path in paths:
            shutil.copy(path, out / path.name)


def stream(source: Opened, fields: Callable[[str], Mapping[str, Tensor]], progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model: those of every matrix, by `fields`, under its name; then what is not compressed."""
    for i, site in enumerate(source.model.metas):
        yield from ((f"{site}.{leaf}", t) for leaf, t in fields(site).items())
        progress("writing", i + 1, len(source.model.metas))
    yield from ((name, source.tensor(name)) for name in source.model.kept)


def write(out: Path, tensors: Iterator[tuple[str, Tensor]], config: Mapping[str, Json], companions: Sequence[Path]) -> None:
    """Tensors as they come, a new file every 4 GB, each under another name until it is complete; then index and configuration."""
    where: dict[str, int] = {}
    batch: dict[str, Tensor] = {}
    total, files, size = 0, 0, 0

    def flush() -> None:
        nonlocal files, batch, size
        with writing(out):
            save_file(batch, out / f".{files}.partial", metadata={"format": "pt"})
        files, batch, size = files + 1, {}, 0

    try:
        for name, tensor in tensors:
            if batch and size + tensor.nbytes > SHARD:
                flush()
            batch[name], where[name] = tensor.cpu().contiguous(), files
            size, total = size + tensor.nbytes, total + tensor.nbytes
        flush()
        names = [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)] if files > 1 else [WEIGHTS]
        with writing(out):
            for i, name in enumerate(names):
                (out / f".{i}.partial").replace(out / name)
            if files > 1:
                index = {"metadata": {"total_size": total}, "weight_map": {n: names[i] for n, i in sorted(where.items())}}
                (out / SHARDED).write_text(json.dumps(index, indent=1))
            copy(companions, out)
            (out / "config.json").write_text(json.dumps(config, indent=1))
    finally:
        for partial in out.glob(".*.partial"):
            partial.unlink()
