"""Documents for servers that do not run here: parsed again, and what they say searches as our codes do."""

import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neighbours import K, agree, coded, distances, everything, rows, vectors

from bitwright.embed.engines import contents, documents
from bitwright.embed.engines.writing import write
from bitwright.embed.index import Index

Read = Iterator[tuple[int, bytes, float]]


@pytest.fixture(params=[False, True], ids=["64-bits", "44-bits-with-ids"])
def index(request: pytest.FixtureRequest) -> Index:
    return coded("itq", 0.7, named=True) if request.param else coded()


def jsons(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def milvus(folder: Path, bits: int) -> Read:
    made = json.loads((folder / "collection.json").read_text())
    fields = {field["fieldName"]: field for field in made["schema"]["fields"]}
    assert fields["bits"] == {"fieldName": "bits", "dataType": "BinaryVector", "elementTypeParams": {"dim": bits}}
    assert fields["id"]["isPrimary"] and made["indexParams"][0]["metricType"] == "HAMMING"
    for row in json.loads((folder / "rows.json").read_text())["rows"]:
        assert set(row) == set(fields)
        yield row["id"], bytes(row["bits"]), row["factor"]


def opensearch(folder: Path, bits: int) -> Read:
    made = json.loads((folder / "index.json").read_text())
    field = made["mappings"]["properties"]["bits"]
    assert made["settings"] == {"index": {"knn": True}} and field["type"] == "knn_vector" and field["dimension"] == bits
    assert (field["data_type"], field["space_type"], field["method"]["engine"]) == ("binary", "hamming", "faiss")
    yield from bulk(folder)


def elasticsearch(folder: Path, bits: int) -> Read:
    field = json.loads((folder / "index.json").read_text())["mappings"]["properties"]["bits"]
    assert field["type"] == "dense_vector" and field["element_type"] == "bit" and field["similarity"] == "l2_norm"
    assert field["dims"] == bits and bits % 8 == 0
    yield from bulk(folder)


def bulk(folder: Path) -> Read:
    lines = jsons(folder / "bulk.ndjson")
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        yield int(action["index"]["_id"]), np.array(document["bits"], np.int8).tobytes(), document["factor"]


def mongodb(folder: Path, bits: int) -> Read:
    (field,) = json.loads((folder / "index.json").read_text())["fields"]
    assert field == {"type": "vector", "path": "bits", "numDimensions": bits, "similarity": "euclidean"}
    for row in jsons(folder / "documents.jsonl"):
        binary = row["bits"]["$binary"]
        kind, unused, *packed = b64decode(binary["base64"])
        assert (binary["subType"], kind, unused) == ("09", 0x10, 0)
        yield row["_id"], bytes(packed), row["factor"]


@pytest.mark.parametrize("read", [milvus, opensearch, elasticsearch, mongodb])
def test_bits_are_read_back_and_search_alike(index: Index, read: Callable[[Path, int], Read], tmp_path: Path):
    write(index, read.__name__, tmp_path / "out")
    ids, bits, factor = zip(*read(tmp_path / "out", contents.whole(index.codec)))
    assert list(ids) == index.names.tolist() and list(factor) == everything(index).factor.tolist()
    kept = np.frombuffer(b"".join(bits), np.uint8).reshape(len(index), -1)
    q = vectors()[1][:20]
    far = np.bitwise_count(contents.signs(index.codec, q)[:, None] ^ kept).sum(2)
    assert np.array_equal(far, distances(index, q).numpy())
    assert np.array_equal(np.array(documents.signed(kept), np.int8).view(np.uint8), kept)


# --- Vespa: its schema is read by a small parser, and its ranking expression is evaluated as Vespa would


def blocks(text: str) -> dict[str, Any]:
    """`head { body }` and `key: value`, nested."""
    found: dict[str, Any] = {}
    inside = [found]
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith("{"):
            inside.append(inside[-1].setdefault(line[:-1].strip(), {}))
        elif line == "}":
            inside.pop()
        else:
            key, _, value = line.partition(":" if re.match(r"[\w-]+:", line) else " ")
            inside[-1][key] = value.strip()
    assert len(inside) == 1, "a brace is not closed"
    return found["schema codes"]


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("scale", ["least-squares", "none"])
def test_vespa_scores_float_queries_as_we_do(bits: int, scale: str, tmp_path: Path):
    index, q = coded("rotated", float(bits), scale), vectors()[1]
    write(index, "vespa", tmp_path / "out")
    schema = blocks((tmp_path / "out" / "schemas" / "codes.sd").read_text())
    fields = {head.split()[1]: head.split(" type ")[1] for head in schema["document codes"]}
    assert fields["bits0"] == "tensor<int8>(x[8])" and len(fields) == 3 + (bits - 1)
    first = schema["document codes"]["field bits0 type tensor<int8>(x[8])"]
    assert first["attribute"] == {"distance-metric": "hamming"} and first["indexing"] == "attribute | index"
    profile = schema["rank-profile scored"]
    assert profile["inputs"] == {
        "query(b)": "tensor<int8>(x[8])",
        "query(q)": "tensor<float>(x[64])",
        "query(start)": "double: 0.0",
    }

    feed = jsons(tmp_path / "out" / "feed.jsonl")
    assert [row["put"] for row in feed] == [f"id:codes:codes::{i}" for i in index.names.tolist()]
    assert all(set(row["fields"]) == set(fields) for row in feed)
    plane = [
        np.frombuffer(bytes.fromhex("".join(row["fields"][f"bits{p}"]["values"] for row in feed)), np.uint8) for p in range(bits)
    ]
    kept = {f"bits{p}": torch.from_numpy(np.unpackbits(b.reshape(len(feed), -1), axis=1)).float() for p, b in enumerate(plane)}
    kept["factor"] = torch.tensor([row["fields"]["factor"] for row in feed])

    queries = index.codec.queries(q)
    given = {"q": contents.turned(index.codec, q)[:, None], "start": (queries @ index.codec.view.centre)[:, None]}
    words = {name: name for name in (*kept, *given)} | {"query": given.__getitem__, "attribute": kept.__getitem__}
    words |= {"unpack_bits": lambda bits: bits, "sum": lambda products: products.sum(-1)}
    scores = eval(profile["second-phase"]["expression"], words)
    hits = index.search(q, K, oversample=20.0)
    agree(hits.ids, scores, atol=1e-5)
    torch.testing.assert_close(hits.scores, scores.gather(1, hits.ids), atol=1e-5, rtol=1e-5)


def test_qdrant_vectors_have_our_signs_and_scores(index: Index, tmp_path: Path):
    write(index, "qdrant", tmp_path / "out")
    made = json.loads((tmp_path / "out" / "collection.json").read_text())
    assert made["vectors"] == {"size": index.codec.book.dims, "distance": "Dot", "on_disk": True}
    assert made["quantization_config"] == {"binary": {"always_ram": True}}
    points = [point for body in jsons(tmp_path / "out" / "points.jsonl") for point in body["points"]]
    assert [point["id"] for point in points] == index.names.tolist()
    read = torch.tensor([point["vector"] for point in points])
    assert torch.equal(read, everything(index).vectors) and np.array_equal(contents.packed(read), everything(index).bits)
    scores = contents.turned(index.codec, vectors()[1]) @ read.T
    agree(rows(index, index.search(vectors()[1], K, oversample=20.0).ids), scores, atol=1e-5)


def test_numbers_are_printed_in_the_fewest_digits_that_come_back():
    gen = np.random.default_rng(0)
    some = gen.integers(0, 2**32, 1 << 16, dtype=np.uint32).view(np.float32)  # of all sizes
    usual = gen.standard_normal(1 << 16).astype(np.float32)
    few = (gen.integers(-10_000, 10_000, 1 << 15) / 10.0 ** gen.integers(0, 9, 1 << 15)).astype(np.float32)
    halves = (gen.integers(-(2**12), 2**12, 1 << 15) / 2.0 ** gen.integers(0, 12, 1 << 15)).astype(np.float32)
    tiny, large = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    odd = np.array([0, -0.0, 1, -1, 1e-45, tiny, large, 1e-14, 1e-13, 1e-5, 1e-4, 999999.94, 1e6, 16777216, 1e16], np.float32)
    powers = np.ldexp(np.float32(1), np.arange(-140, 127))
    x = np.concatenate([some[np.isfinite(some)], usual, few, halves, odd, powers])
    x = np.concatenate([x, np.nextafter(x, np.float32(0))])
    for width in (1, 9):
        rows = x[: len(x) // width * width].reshape(-1, width)
        assert documents.printed(rows) == [documents.compact([float(text) for text in row]) for row in rows.astype("U")]
