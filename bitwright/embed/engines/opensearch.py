"""OpenSearch: `knn_vector` of data type binary, Hamming distances. A folder: `index.json`, the body that creates the index, and
`bulk.ndjson` for its _bulk. A query is the bytes of its signs as numbers from -128 to 127.
"""

from pathlib import Path

from bitwright.embed.engines import contents, documents, elasticsearch
from bitwright.embed.index import Index
from bitwright.progress import Progress


def write(index: Index, out: Path, progress: Progress) -> str:
    field = {
        "type": "knn_vector",
        "dimension": contents.binary(index.codec, "opensearch"),
        "data_type": "binary",
        "space_type": "hamming",
        "method": {"name": "hnsw", "engine": "faiss"},
    }
    settings = {"index": {"knn": True}}
    documents.value(out / "index.json", {"settings": settings, "mappings": elasticsearch.mappings(field)})
    documents.lines(out / "bulk.ndjson", map(documents.compact, elasticsearch.bulk(index, progress)))
    return "The vector of a knn query is documents.signed(contents.signs(codec, q))[i]: Hamming distances."
