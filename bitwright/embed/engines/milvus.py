"""Milvus: BINARY_VECTOR under Hamming distances. A folder: `collection.json`, the body that creates the collection, and `rows.json`
for a bulk import. A query is the bytes of its signs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitwright.embed.engines import contents, documents
from bitwright.embed.index import Index
from bitwright.progress import Progress

LONGEST = 65535  # bytes of an id that is text, the most that there is


def write(index: Index, out: Path, progress: Progress) -> str:
    bits = contents.binary(index.codec, "milvus")
    known = {"dataType": "Int64"} if index.texts is None else {"dataType": "VarChar", "elementTypeParams": {"max_length": LONGEST}}
    fields = [
        {"fieldName": "id", "isPrimary": True, **known},
        {"fieldName": "bits", "dataType": "BinaryVector", "elementTypeParams": {"dim": bits}},
        {"fieldName": "factor", "dataType": "Float"},
    ]
    ranked = {"fieldName": "bits", "indexName": "bits", "indexType": "BIN_IVF_FLAT", "metricType": "HAMMING"}
    collection = {
        "collectionName": "codes",
        "schema": {"autoId": False, "enableDynamicField": False, "fields": fields},
        "indexParams": [{**ranked, "params": {"nlist": contents.lists(index)}}],
    }
    documents.value(out / "collection.json", collection)
    with (out / "rows.json").open("w") as file:  # one object, a document per line
        file.write('{"rows": [\n')
        file.writelines((",\n" if i else "") + json.dumps(row) for i, row in enumerate(rows(index, progress)))
        file.write("\n]}\n")
    return "The data of a query is contents.signs(codec, q)[i].tobytes(): Hamming distances."


def rows(index: Index, progress: Progress) -> Iterator[Any]:
    for part in contents.parts(index, progress):
        for i, row, f in zip(part.names, part.bits.tolist(), part.factor.tolist()):
            yield {"id": i, "bits": row, "factor": f}
