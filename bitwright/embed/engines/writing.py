"""An index written for an engine: whole or not at all, beside its place first."""

import os
import shutil
from importlib import import_module
from pathlib import Path

from bitwright.embed.engines import ENGINES, contents, documents
from bitwright.embed.index import Index
from bitwright.errors import BadRequest, in_a_line
from bitwright.progress import Progress, silent

NUMBERED = ("faiss", "usearch", "qdrant")  # these know documents by number only
NUMBERS = " Ids are numbers; Index.texts_of(ids) gives their text."
CARD = "bitwright.json"  # in every folder that we wrote: the header of the codes, and how they are searched


def write(index: Index, engine: str, out: Path, overwrite: bool = False, progress: Progress = silent) -> str:
    """One sentence: how what was written is searched. Raises BadRequest for an unknown engine, codes that it cannot express,
    a library that is not installed, and a place that is taken or cannot be written."""
    if engine not in ENGINES:
        raise BadRequest(f"There is no engine {engine!r}; choose one of {', '.join(ENGINES)}.")
    if not len(index):
        raise BadRequest("The index holds no documents; add some first.")
    if out.exists() and not overwrite:
        raise BadRequest(f"{out} is there already; choose another name or pass --overwrite.")
    if out.is_dir() and not (out / CARD).is_file():
        raise BadRequest(f"{out} holds files that bitwright did not write, --overwrite leaves them; choose another name.")
    module, _, name = ENGINES[engine].partition(":")
    beside = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        said = str(getattr(import_module(module), name)(index, beside, progress))
        said += NUMBERS if index.texts is not None and engine.startswith(NUMBERED) else ""
        if beside.is_dir():
            documents.value(beside / CARD, {"engine": engine, "search": said, "codes": contents.header(index)})
        if out.is_dir() or beside.is_dir():  # a file is replaced in one step
            remove(out)
        beside.replace(out)
    except OSError as error:
        raise BadRequest(f"Cannot write {out}: {in_a_line(error)}; make room or choose another place.") from None
    finally:
        remove(beside)
    return said


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
