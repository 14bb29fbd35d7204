"""Engines that take a code book search in our points: FAISS' fast scan and Lance."""

from pathlib import Path
from typing import Any

import faiss
import lance
import numpy as np
import pytest
import torch
from neighbours import K, agree, coded, everything, rows, shared, vectors

from bitwright.embed.engines import contents
from bitwright.embed.engines.writing import write
from bitwright.embed.index import Index

STEPS = ("rotated-1", "itq-1", "uniform-2")  # the products of their points are multiples of one number
BOOKS = ["rotated-1", "rotated-2", "rotated-4", "itq-1", "product-1", "product-0.5", "uniform-2", "rotated-1-with-ids"]


@pytest.fixture(params=BOOKS)
def index(request: pytest.FixtureRequest) -> Index:
    name, bits, *named = request.param.split("-", 2)
    return coded(name, float(bits), "none", bool(named))


def scanned(found: Any, index: Index) -> Any:
    """What is inside the map and the ids; it lives as long as `found` does."""
    inner = faiss.downcast_index(faiss.downcast_index(found).index)
    return inner if index.ids is None else faiss.downcast_index(inner.index)


def products(index: Index, y: torch.Tensor) -> torch.Tensor:
    return y @ everything(index).coordinates.T


def test_faiss_keeps_the_codes_bit_for_bit(index: Index, tmp_path: Path):
    write(index, "faiss-pq", tmp_path / "f.index")
    found = faiss.read_index(str(tmp_path / "f.index"))
    inner = scanned(found, index)
    kept = np.stack([inner.reconstruct(i) for i in range(0, len(index), 50)])
    assert np.array_equal(kept, everything(index).coordinates[::50].numpy())


def test_faiss_ranks_coded_queries_as_we_do(index: Index, request: pytest.FixtureRequest, tmp_path: Path):
    write(index, "faiss-pq", tmp_path / "f.index")
    y = index.codec.book.decode(index.codec.encode(vectors()[1]).nibbles)
    _, ids = faiss.read_index(str(tmp_path / "f.index")).search((y @ index.codec.view.matrix).numpy(), K)
    found, scores = rows(index, torch.from_numpy(ids)), products(index, y)
    if index.codec.name not in STEPS:
        reason = "their products are no whole steps, and FAISS rounds tables to bytes: 0.968 to 0.995 of the best ten are shared"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    agree(found, scores, atol=1e-5)


@pytest.mark.parametrize("engine", ["faiss-pq", "faiss-ivfpq"])
def test_faiss_ranks_float_queries_as_we_do(index: Index, engine: str, request: pytest.FixtureRequest, tmp_path: Path):
    write(index, engine, tmp_path / "f.index")
    found = faiss.read_index(str(tmp_path / "f.index"))
    if engine == "faiss-ivfpq":
        scanned(found, index).nprobe = 1000
    _, ids = found.search(vectors()[1].numpy(), 2 * K)
    scores, candidates = products(index, contents.turned(index.codec, vectors()[1])), rows(index, torch.from_numpy(ids))
    assert shared(candidates.gather(1, scores.gather(1, candidates).topk(K).indices), scores) >= 0.999
    if index.codec.name == "rotated-4":
        request.applymarker(pytest.mark.xfail(strict=True, reason="measured 0.967, our own scan with tables of bytes 0.959"))
    assert shared(candidates[:, :K], scores) >= 0.98


def test_four_times_as_many_scored_again_make_up_for_factors(tmp_path: Path):
    index, q = coded("rotated", 2.0), vectors()[1]
    assert "factors are left out" in write(index, "faiss-pq", tmp_path / "f.index")
    _, ids = faiss.read_index(str(tmp_path / "f.index")).search(q.numpy(), 4 * K)
    scores = contents.turned(index.codec, q) @ everything(index).vectors.T
    first, candidates = torch.from_numpy(ids)[:, :K], torch.from_numpy(ids)
    again = candidates.gather(1, scores.gather(1, candidates).topk(K).indices)
    assert shared(again, scores) >= 0.98 > shared(first, scores)


def test_lance_ranks_as_we_do(index: Index, tmp_path: Path):
    write(index, "lance-pq", tmp_path / "t.lance")
    table, y = lance.dataset(tmp_path / "t.lance"), contents.turned(index.codec, vectors()[1][:40])
    found = []
    for q in y.numpy():
        nearest = {"column": "vector", "q": q, "k": K, "nprobes": 1000, "use_index": True}
        found.append(table.to_table(columns=["id", "_distance"], nearest=nearest)["id"].to_pylist())
    agree(rows(index, torch.tensor(found)), products(index, y), atol=1e-4)
