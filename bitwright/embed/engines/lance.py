"""Lance: a table with our points as the code book of its index, or with bits under a Hamming distance.

    product    columns id, vector (y), factor      lance.dataset(folder).to_table(nearest={"column": "vector", "q": asked(q), ...})
    bits       columns id, bits (uint8), factor                                   nearest={"column": "bits", "q": signs, ...}

The metric of `product` is `dot`, under which Lance codes vectors and not what a coarse centroid leaves of them, so its codes are
ours. The table keeps y in fp32 beside the codes; a score on the scale of the vectors is start(q) + factor <asked(q), y>.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.grids.clusters import kmeans
from bitwright.progress import Progress


def product(index: Index, out: Path, progress: Progress) -> str:
    count, width = contents.runs(index.codec, "lance-pq")
    table = written(index, out, "vector", contents.library("pyarrow").float32(), count * width, progress)
    some = contents.sample(index, 16 * contents.lists(index)).coordinates
    centres = kmeans(some, torch.ones(len(some)), contents.lists(index), 10, 0)
    table.create_index(
        "vector", "IVF_PQ", metric="dot", num_partitions=len(centres), ivf_centroids=centres.numpy(),
        num_bits=4, num_sub_vectors=count, pq_codebook=index.codec.book.points.numpy(),
    )  # fmt: skip
    return "nearest={'column': 'vector', 'q': contents.turned(codec, q)[i], 'k': k}: distance 1 - <asked(q), y>, factors left out."


def bits(index: Index, out: Path, progress: Progress) -> str:
    width = contents.binary(index.codec, "lance-bits") // 8
    table = written(index, out, "bits", contents.library("pyarrow").uint8(), width, progress)
    table.create_index("bits", "IVF_FLAT", metric="hamming", num_partitions=contents.lists(index))
    return "nearest={'column': 'bits', 'q': contents.signs(codec, q)[i], 'k': k, 'metric': 'hamming'}: Hamming distances."


def written(index: Index, out: Path, name: str, kind: Any, width: int, progress: Progress) -> Any:
    library = contents.library("pyarrow")
    known = library.int64() if index.texts is None else library.string()
    schema = library.schema([("id", known), (name, library.list_(kind, width)), ("factor", library.float32())])

    def batches() -> Iterator[Any]:
        for part in contents.parts(index, progress):
            rows = part.bits if name == "bits" else part.coordinates.numpy()
            lists = library.FixedSizeListArray.from_arrays(rows.ravel(), width)
            arrays = [library.array(part.names), lists, library.array(part.factor.numpy())]
            yield library.RecordBatch.from_arrays(arrays, schema=schema)

    reader = library.RecordBatchReader.from_batches(schema, batches())
    return contents.library("lance").write_dataset(reader, str(out))
