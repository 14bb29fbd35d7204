"""Engines that count differing bits find what our own scan finds, read back from their files."""

import json
from pathlib import Path

import faiss
import lance
import numpy as np
import pyarrow.parquet as storage
import pytest
import torch
import usearch.index
from neighbours import K, agree, coded, distances, everything, rows, shared, vectors

from bitwright.embed.engines import contents
from bitwright.embed.engines.writing import write
from bitwright.embed.index import Index

CODES = [("rotated", 1.0, False), ("itq", 0.7, True)]  # 64 bits; 44 bits in 6 bytes, with ids


@pytest.fixture(params=CODES, ids=["64-bits", "44-bits-with-ids"])
def index(request: pytest.FixtureRequest) -> Index:
    name, bits, named = request.param
    return coded(name, bits, named=named)


def faiss_search(index: Index, engine: str, folder: Path, **settings: int) -> torch.Tensor:
    write(index, engine, folder / "f.index")
    found = faiss.read_index_binary(str(folder / "f.index"))
    inner = found if index.ids is None else faiss.downcast_IndexBinary(found.index)
    for name, value in settings.items():
        setattr(inner.hnsw if name == "efSearch" else inner, name, value)
    scores, ids = found.search(contents.signs(index.codec, vectors()[1]), K)
    own = rows(index, torch.from_numpy(ids))
    assert np.array_equal(distances(index, vectors()[1]).gather(1, own).numpy(), scores)
    return own


def test_bits_are_the_signs_of_the_coordinates(index: Index):
    x, _ = vectors()
    y = contents.turned(index.codec, x) - index.codec.view.centre @ index.codec.view.matrix.T
    bits = np.unpackbits(everything(index).bits, axis=1)
    dims = index.codec.book.dims
    clear = y.abs().numpy() > 1e-5
    assert (bits[:, :dims] == (y > 0).numpy())[clear].all() and not bits[:, dims:].any() and clear.mean() > 0.99


def test_faiss_flat(index: Index, tmp_path: Path):
    agree(faiss_search(index, "faiss-flat", tmp_path), -distances(index, vectors()[1]))


def test_faiss_in_cells(index: Index, tmp_path: Path):
    far = -distances(index, vectors()[1])
    assert shared(faiss_search(index, "faiss-ivf", tmp_path), far) > 0.5  # an eighth of the cells; ties cost some of it
    agree(faiss_search(index, "faiss-ivf", tmp_path / "all", nprobe=10_000), far)


def test_faiss_as_a_graph(index: Index, tmp_path: Path):
    far = -distances(index, vectors()[1])
    got = far.gather(1, faiss_search(index, "faiss-hnsw", tmp_path, efSearch=512))
    assert (got == far.topk(K).values).float().mean() > 0.98


def test_usearch(index: Index, tmp_path: Path):
    write(index, "usearch", tmp_path / "u.index")
    found = usearch.index.Index.restore(str(tmp_path / "u.index"))
    hits = found.search(contents.signs(index.codec, vectors()[1]), K, exact=True)
    own, far = rows(index, torch.from_numpy(hits.keys.astype(np.int64))), distances(index, vectors()[1])
    agree(own, -far)
    assert np.array_equal(hits.distances, far.gather(1, own).numpy())
    near = found.search(contents.signs(index.codec, vectors()[1]), K)
    got = far.gather(1, rows(index, torch.from_numpy(near.keys.astype(np.int64))))
    assert (got == far.topk(K, largest=False).values).float().mean() > 0.9  # its graph, as it is by default


def test_lance_bits(index: Index, tmp_path: Path):
    write(index, "lance-bits", tmp_path / "t.lance")
    table = lance.dataset(tmp_path / "t.lance")
    assert json.loads((tmp_path / "t.lance" / "bitwright.json").read_text())["codes"]["space_id"] == index.codec.space_id
    few = vectors()[1][:40]
    far, found = distances(index, few), []
    for i, q in enumerate(contents.signs(index.codec, few)):
        hits = table.to_table(columns=["id", "_distance"],
                              nearest={"column": "bits", "q": q, "k": K, "metric": "hamming", "nprobes": 1000})  # fmt: skip
        found.append(rows(index, torch.from_numpy(hits["id"].to_numpy().copy())))
        assert hits["_distance"].to_pylist() == far[i, found[-1]].tolist()
    agree(torch.stack(found), -far)


def test_parquet(index: Index, tmp_path: Path):
    write(index, "parquet", tmp_path / "v.parquet")
    table, own, q = storage.read_table(tmp_path / "v.parquet"), everything(index), vectors()[1]
    assert json.loads(table.schema.metadata[b"bitwright"])["space_id"] == index.codec.space_id
    assert table["id"].to_pylist() == index.names.tolist()
    assert [bytes(b) for b in table["bits"].to_pylist()] == [row.tobytes() for row in own.bits]
    read = torch.tensor(np.stack(table["vector"].to_numpy()))
    assert torch.equal(read, own.vectors) and table["factor"].to_pylist() == own.factor.tolist()
    scores = contents.turned(index.codec, q) @ read.T + (index.codec.queries(q) @ index.codec.view.centre)[:, None]
    hits = index.search(q, K)
    torch.testing.assert_close(hits.scores, scores.gather(1, rows(index, hits.ids)), atol=1e-5, rtol=1e-5)
