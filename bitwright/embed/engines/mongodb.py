"""MongoDB: BSON vectors of packed bits (binary subtype 9), Hamming distances (called euclidean there). A folder: `index.json`, the
definition of the search index, and `documents.jsonl` for mongoimport. A query is the same kind of binary, of its signs.
"""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitwright.embed.engines import contents, documents
from bitwright.embed.index import Index
from bitwright.progress import Progress

PACKED = bytes([0x10, 0])  # the kind of elements, and how many bits of the last byte do not count


def write(index: Index, out: Path, progress: Progress) -> str:
    bits = contents.binary(index.codec, "mongodb")
    field = {"type": "vector", "path": "bits", "numDimensions": bits, "similarity": "euclidean"}
    documents.value(out / "index.json", {"fields": [field]})
    documents.lines(out / "documents.jsonl", map(documents.compact, rows(index, progress)))
    return "The queryVector is Binary(bytes([16, 0]) + contents.signs(codec, q)[i].tobytes(), 9): Hamming distances."


def rows(index: Index, progress: Progress) -> Iterator[Any]:
    for part in contents.parts(index, progress):
        for i, row, f in zip(part.names, part.bits, part.factor.tolist()):
            packed = {"base64": b64encode(PACKED + row.tobytes()).decode(), "subType": "09"}
            yield {"_id": i, "bits": {"$binary": packed}, "factor": f}
