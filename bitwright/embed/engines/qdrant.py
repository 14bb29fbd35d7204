"""Qdrant: it takes no codes, only floats that it quantizes itself; so floats after our map, whose signs are our first bits.

    vector = f y,     query = asked(q),     product = score - start(q)

A folder: `collection.json`, the body that creates the collection (vectors on disk, their signs in memory), and `points.jsonl`, a
body of points to upsert per line. One bit per coordinate is kept exactly; of more bits Qdrant scans the first, and scores again
with the floats. Weaviate (`bq` compression) works on the same vectors in the same way.
"""

from collections.abc import Iterator
from pathlib import Path

from bitwright.embed.engines import contents, documents
from bitwright.embed.index import Index
from bitwright.progress import Progress

UPSERT = 500  # points in a body


def write(index: Index, out: Path, progress: Progress) -> str:
    vectors = {"size": index.codec.book.dims, "distance": "Dot", "on_disk": True}
    documents.value(out / "collection.json", {"vectors": vectors, "quantization_config": {"binary": {"always_ram": True}}})
    documents.lines(out / "points.jsonl", bodies(index, progress))
    return (
        "Queries are contents.turned(codec, q)[i]; Qdrant scans the signs of what the codes decode to and scores with the floats."
    )


def bodies(index: Index, progress: Progress) -> Iterator[str]:
    for part in contents.parts(index, progress):
        for ids, rows in zip(part.ids.split(UPSERT), part.vectors.split(UPSERT)):
            points = zip(ids.tolist(), documents.printed(rows.numpy()))
            yield '{"points":[' + ",".join(f'{{"id":{i},"vector":{vector}}}' for i, vector in points) + "]}"
