"""An index written for an engine: whole or not at all, beside its place first."""

import os
import shutil
from importlib import import_module
from pathlib import Path

from bitwright.embed.engines import contents, documents
from bitwright.embed.index import Index
from bitwright.errors import BadRequest, in_a_line
from bitwright.progress import Progress, silent

ENGINES = {  # each is a function (index, where to write, progress) -> one sentence: how it is searched
    "faiss-flat": "bitwright.embed.engines.faiss:flat",
    "faiss-ivf": "bitwright.embed.engines.faiss:ivf",
    "faiss-hnsw": "bitwright.embed.engines.faiss:hnsw",
    "faiss-pq": "bitwright.embed.engines.faiss_pq:flat",
    "faiss-ivfpq": "bitwright.embed.engines.faiss_pq:ivf",
    "lance-pq": "bitwright.embed.engines.lance:product",
    "lance-bits": "bitwright.embed.engines.lance:bits",
    "usearch": "bitwright.embed.engines.usearch:write",
    "pgvector": "bitwright.embed.engines.pgvector:write",
    "parquet": "bitwright.embed.engines.parquet:write",
    "vespa": "bitwright.embed.engines.vespa:write",
    "milvus": "bitwright.embed.engines.milvus:write",
    "opensearch": "bitwright.embed.engines.opensearch:write",
    "elasticsearch": "bitwright.embed.engines.elasticsearch:write",
    "qdrant": "bitwright.embed.engines.qdrant:write",
    "mongodb": "bitwright.embed.engines.mongodb:write",
}
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
        if beside.is_dir():
            documents.value(beside / CARD, {"engine": engine, "search": said, "codes": contents.header(index)})
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
    else:
        path.unlink(missing_ok=True)
