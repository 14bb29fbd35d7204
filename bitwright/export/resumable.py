"""The native directory while it is being made: shards are written as blocks finish, each under a temporary name first.

While the work goes on, a hidden folder holds what a resumed run needs: the number of finished shards, their report rows, and the
rows of the stream as they stood. What the shards hold is native.py's business.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bitwright.checkpoint import header
from bitwright.errors import BadRequest, BrokenPromise, writing
from bitwright.saving import save_file
from bitwright.terms.base import Json

WORK = ".bitwright-resume"
NATIVE = ".bitwright-native"  # where a directory of another format keeps the native one it is made from


@dataclass(frozen=True)
class Directory:
    """An output directory of `number` shards; `signature` names the work, so that only the same work is resumed."""

    out: Path
    number: int
    signature: str

    def begin(self, resume: bool, overwrite: bool) -> dict[str, Json]:
        """The state to go on from ({} for a fresh start). Raises BadRequest where the directory is in the way."""
        if self.out.exists() and not self.out.is_dir():
            raise BadRequest(f"{self.out} is a file; give a directory.")
        if not self.out.exists() or not any(self.out.iterdir()):
            return {}
        state = self.out / WORK / "state.json"
        if resume and state.is_file():
            found: dict[str, Json] = json.loads(state.read_text())
            if found["signature"] != self.signature:
                raise BadRequest(
                    f"{self.out} holds unfinished work of another model, recipe or data; repeat that command, or add --overwrite."
                )
            return found
        if resume and all(p.name == WORK or p.name.startswith("model-") for p in self.out.iterdir()):
            return {}  # stopped before the first block was declared finished
        if overwrite and not ((self.out / "bitwright.json").is_file() or (self.out / WORK).is_dir()):
            raise BadRequest(
                f"{self.out} holds files that bitwright did not write, --overwrite leaves them; choose another directory."
            )
        if overwrite:
            shutil.rmtree(self.out)
            return {}
        hint = "add --resume to go on with the unfinished work" if state.is_file() else "choose another directory"
        raise BadRequest(f"{self.out} is not empty; {hint}, or add --overwrite to replace it.")

    def shard(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Write shard i (from 0) and read it back. What is written is complete or not there."""
        path = self.out / self.shard_name(i)
        self.write(path, tensors)
        back = load_file(path)
        if set(back) != set(tensors) or any(not torch.equal(back[n], t.cpu()) for n, t in tensors.items()):
            raise BrokenPromise(f"{path} does not read back as it was written; check the disk.")

    def checkpoint(self, done: int, rows: Sequence[Mapping[str, Json]], hidden: Mapping[str, Tensor]) -> None:
        """Declare `done` shards finished, with the stream's rows as they stand before the next block."""
        work = self.out / WORK
        if hidden:
            self.write(work / f"{done}.safetensors", hidden)
        partial = work / "state.partial"
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"signature": self.signature, "done": done, "rows": list(rows)}))
            partial.replace(work / "state.json")
        (work / f"{done - 1}.safetensors").unlink(missing_ok=True)

    def read(self, i: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = load_file(self.out / self.shard_name(i))
        return found

    def keep(self) -> None:
        """Every shard once more in the hidden folder, before what follows replaces them: begun again after an interruption, it
        finds them as they were."""
        for i in range(self.number):
            path = self.out / WORK / f"before-{i}.safetensors"
            if path.is_file():
                self.shard(i, load_file(path))
            else:
                self.write(path, self.read(i))

    def hidden(self, done: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = load_file(self.out / WORK / f"{done}.safetensors")
        return found

    def write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            try:
                save_file({n: t.contiguous() for n, t in tensors.items()}, partial, metadata={"format": "pt"})
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def shard_name(self, i: int) -> str:
        return f"model-{i + 1:05d}-of-{self.number:05d}.safetensors"

    def finish(self, config: dict[str, Json], files: Sequence[Path], document: dict[str, Json], size: int) -> None:
        """Index, configuration, the source's other files as they are, and bitwright.json; then the work folder goes.
        Raises BrokenPromise where the tensors do not take the `size` bytes that the plan foretold."""
        where, total = {}, 0
        for i in range(self.number):
            for name, shape, dtype in header(self.out / self.shard_name(i)):
                where[name] = self.shard_name(i)
                total += dtype.itemsize * prod(shape)
        if total != size:
            raise BrokenPromise(f"The plan foretold {size} bytes, the files hold {total}: a fault of bitwright.")
        with writing(self.out):
            index = {"metadata": {"total_size": total, "format": "pt"}, "weight_map": dict(sorted(where.items()))}
            (self.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
            for path in files:
                shutil.copy(path, self.out / path.name)
            (self.out / "config.json").write_text(json.dumps(config, indent=1))
            (self.out / "bitwright.json").write_text(json.dumps(document, indent=1))
        shutil.rmtree(self.out / WORK, ignore_errors=True)


def make_room(out: Path, resume: bool, overwrite: bool) -> None:
    """An empty directory for a format that is written at the end, or the one of unfinished work. Raises BadRequest otherwise."""
    if out.exists() and not out.is_dir():
        raise BadRequest(f"{out} is a file; give a directory.")
    found = {p.name for p in out.iterdir()} if out.exists() else set()
    if not found or (resume and found == {NATIVE}):
        return
    if not overwrite:
        hint = "add --resume to go on with the unfinished work" if NATIVE in found else "choose another directory"
        raise BadRequest(f"{out} is not empty; {hint}, or add --overwrite to replace it.")
    if not found & {"bitwright.json", NATIVE, WORK}:
        raise BadRequest(f"{out} holds files that bitwright did not write, --overwrite leaves them; choose another directory.")
    shutil.rmtree(out)
