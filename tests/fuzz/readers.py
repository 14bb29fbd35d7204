"""Fuzzing the readers, guided by what their code has seen: `python -m fuzz.readers TARGET FOLDER SECONDS`, in tests/, with atheris.

A case is read as a user would: opened, its ledger, every matrix decoded, every other tensor. It may be read or refused in one
sentence; or its own report may be told to be wrong. Anything else is a finding, and so are a tensor far larger than the files and
a case of more than ten seconds. Findings are written to FOLDER/found, one for each place in the code, and fuzzing goes on; what
covers new code is kept in FOLDER/corpus, where the next run begins.
"""

import ast
import hashlib
import random
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from fuzz import gguf, mutations, seeds

ROOT = Path(__file__).parents[2]
READERS = ("export", "checkpoint", "terms", "grids", "activations", "index", "layout", "ledger")  # what coverage is measured of
SECONDS, MEGABYTES = 10, 4096  # of one case; of the process
TIMES, ROOM = 64, 2**20  # a tensor is at most so many times the files, and what tables of constants take
GROWTH = 2**27  # of the process, from one case


class TooLarge(AssertionError):
    """Nothing that a reader catches."""


def words() -> list[str]:
    """The words that the readers know: every short text in their code is a piece of a configuration to try."""
    found = set()
    for path in [*(ROOT / "bitwright/export").rglob("*.py"), ROOT / "bitwright/index.py", ROOT / "bitwright/grids/table.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 40:
                found.add(node.value)
    return sorted(word for word in found if " " not in word)


class Target:
    """One format: how its cases are changed and read."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.found, self.root = name, folder / "found", folder / "case"
        self.words, self.met = words(), set()
        self.seeds = [seed.read_bytes() for seed in sorted((folder / "corpus").glob("seed-*"))]

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        import atheris

        rng, names = random.Random(seed), seeds.FILES[self.name]
        parts = seeds.split(rng.choice(self.seeds) if rng.random() < 0.25 else data, len(names))  # what is whole stays in play
        at = rng.choices(range(len(names)), [10 if part else 1 for part in parts])[0]
        try:
            if rng.random() < 0.1:
                raise ValueError
            parts[at] = self.changed(names[at], parts[at], rng, atheris.Mutate)
        except Exception:  # it is broken already, or is to be
            parts[at] = atheris.Mutate(parts[at], len(parts[at]) + 64)
        case = seeds.join(parts)
        return case if len(case) <= most else data

    def changed(self, name: str, data: bytes, rng: random.Random, raw: mutations.Raw) -> bytes:
        if name.endswith("index.json") and not data:
            where = {"weight_map": {"a": "model.safetensors", "b": rng.choice(self.words)}}
            return mutations.document(mutations.json.dumps(where).encode(), rng, self.words)
        if name.endswith(".json"):
            return mutations.document(data, rng, self.words)
        if name.endswith(".safetensors"):
            return mutations.safetensors(data, rng, self.words, raw)
        if name.endswith(".onnx"):
            return mutations.onnx(data, rng, self.words, raw)
        from bitwright.export.gguf.types import KINDS

        return gguf.gguf(data, rng, self.words, raw, {kind.id: (kind.weights, kind.bytes) for kind in KINDS.values()})

    def case(self, data: bytes) -> None:
        size = seeds.lay(data, self.name, self.root)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read(self.root, size)
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if grown > GROWTH + TIMES * size:
                raise TooLarge(f"the process grew by {grown:,} bytes")
        except Exception as error:
            self.keep(error, data)

    def keep(self, error: Exception, data: bytes) -> None:
        """A finding, named after the place in the code where it came from."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/bitwright/" in f.filename]
        place = f"{type(error).__name__} {[(f.filename, f.lineno) for f in frames[-1:]]}"
        if place in self.met:
            return
        self.met.add(place)
        name = hashlib.sha256(place.encode()).hexdigest()[:12]
        (self.found / f"{self.name}-{name}.case").write_bytes(data)
        (self.found / f"{self.name}-{name}.txt").write_text("".join(traceback.format_exception(error)))


def read(root: Path, size: int) -> bool:
    """Everything that there is in a directory of `size` bytes; whether it could be read."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from bitwright.errors import BadRequest, BrokenPromise
    from bitwright.export.base import open_compressed
    from bitwright.ledger import ledger

    most = TIMES * size + ROOM

    class Measured(TorchDispatchMode):
        """Sees every tensor that is made, and every one that could not be."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            try:
                made = func(*args, **(kwargs or {}))
            except RuntimeError as error:
                if "memory" in str(error) or "storage size" in str(error):
                    raise TooLarge(f"{func}: {error}") from None
                raise
            for one in made if isinstance(made, list | tuple) else [made]:
                if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() > most:
                    raise TooLarge(f"{func} made {tuple(one.shape)} from {size} bytes")
            return made

    try:
        with Measured():
            opened = open_compressed(root)
            ledger(root)
            for site in opened.model.metas:
                for term in opened.terms(site):
                    if 4 * term.decode().numel() > most:
                        raise TooLarge(f"{site} decodes to {term.shape} from {size} bytes")
                opened.scales(site)
            for name in opened.model.kept:
                opened.tensor(name)
    except BadRequest as why:
        assert "\n" not in str(why) and str(why).endswith("."), why
        return False
    except BrokenPromise:
        assert opened.document
        return False
    return True


def main(name: str, folder: str, seconds: str) -> None:
    import atheris

    modules = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "bitwright").rglob("*.py"))
    others = [m.removesuffix(".__init__") for m in modules if not m.removeprefix("bitwright.").startswith(READERS)]
    with atheris.instrument_imports(include=["bitwright"], exclude=others):
        import bitwright
        import bitwright.ledger  # noqa: F401
        from bitwright import index

        for form in index.FORMATS:
            index.form(form)
    import torch

    from bitwright.calibrate.data import Windows

    corpus, found, case = (Path(folder) / name for name in ("corpus", "found", "case"))
    for path in (corpus, found, case):
        path.mkdir(parents=True, exist_ok=True)
    rows, zeros = torch.randint(0, 8, (6, 24), generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.long)
    data = Windows(rows, ("noise",), zeros, ("noise",) * 6, zeros, "noise", "calibration", 0)
    with tempfile.TemporaryDirectory() as scratch:
        largest = seeds.sown(name, corpus, Path(scratch), lambda: data)
    torch.set_num_threads(1)
    target = Target(name, Path(folder))
    for seed in target.seeds:
        assert read(target.root, seeds.lay(seed, name, target.root)), "a whole model is not read"
    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_total_time={seconds}", f"-max_len={2 * largest}"]
    ways = ["-len_control=0", "-reduce_inputs=0", f"-artifact_prefix={found}/", "-print_final_stats=1"]
    args = ["fuzz", str(corpus), *limits, *ways]
    atheris.Setup(args, target.case, custom_mutator=target.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
