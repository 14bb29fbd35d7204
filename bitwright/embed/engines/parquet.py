"""Parquet, for bulk imports: id, bits where codes are bits, factor, and the vectors that the codes stand for.

    score(q, i) = start(q) + <asked(q), vector_i>

`bits` is binary of one size, `vector` a list of fp32 of one size; the metadata of the file hold the header of the codes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.progress import Progress


def write(index: Index, out: Path, progress: Progress) -> str:
    library, storage = contents.library("pyarrow"), contents.library("pyarrow.parquet")
    binary = len(contents.planes(index.codec.book)) == 1
    schema = columns(library, index, binary).with_metadata({"bitwright": json.dumps(contents.header(index))})
    with storage.ParquetWriter(str(out), schema) as file:
        for batch in batches(library, index, schema, binary, progress):
            file.write_batch(batch)
    return "Queries are contents.turned(codec, q); the product with `vector` is the score but for what it starts with."


def columns(library: Any, index: Index, binary: bool) -> Any:
    dims = index.codec.book.dims
    name = library.int64() if index.texts is None else library.string()
    fields = [("id", name), ("factor", library.float32()), ("vector", library.list_(library.float32(), dims))]
    return library.schema(fields + ([("bits", library.binary(contents.whole(index.codec) // 8))] if binary else []))


def batches(library: Any, index: Index, schema: Any, binary: bool, progress: Progress) -> Iterator[Any]:
    for part in contents.parts(index, progress):
        vectors = library.FixedSizeListArray.from_arrays(part.vectors.numpy().ravel(), index.codec.book.dims)
        arrays = [library.array(part.names), library.array(part.factor.numpy()), vectors]
        if binary:
            arrays.append(library.array([row.tobytes() for row in part.bits], schema.field("bits").type))
        yield library.RecordBatch.from_arrays(arrays, schema=schema)
