"""Elasticsearch: `dense_vector` of element type bit, Hamming distances (l2_norm by name). A folder: `index.json`, the body that
creates the index, and `bulk.ndjson` for its _bulk. A query is the bytes of its signs as numbers from -128 to 127.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitwright.embed.engines import contents, documents
from bitwright.embed.index import Index
from bitwright.progress import Progress


def write(index: Index, out: Path, progress: Progress) -> str:
    bits = contents.binary(index.codec, "elasticsearch")
    field = {"type": "dense_vector", "element_type": "bit", "dims": bits, "index": True, "similarity": "l2_norm"}
    documents.value(out / "index.json", {"mappings": mappings(field)})
    documents.lines(out / "bulk.ndjson", map(documents.compact, bulk(index, progress)))
    return (
        "The query_vector of a knn search is documents.signed(contents.signs(codec, q))[i]: _score 1 - differing bits / all bits."
    )


def mappings(field: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {"bits": field, "factor": {"type": "float", "index": False}}}


def bulk(index: Index, progress: Progress) -> Iterator[Any]:
    for part in contents.parts(index, progress):
        for i, row, f in zip(part.names, documents.signed(part.bits), part.factor.tolist()):
            yield {"index": {"_id": str(i)}}
            yield {"bits": row, "factor": f}
