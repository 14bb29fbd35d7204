"""The script for PostgreSQL, run by a real server: with pgvector and without it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from neighbours import N, agree, coded, distances, everything, rows, texts, vectors
from torch import Tensor

from bitwright.embed.engines import contents
from bitwright.embed.engines.writing import write
from bitwright.embed.index import Index

K, CANDIDATES, FEW = 10, 100, 8


@pytest.fixture(params=[False, True], ids=["64-bits", "44-bits-with-ids"])
def index(request: pytest.FixtureRequest) -> Index:
    return coded("itq", 0.7, named=True) if request.param else coded()


@pytest.fixture(params=[True, False], ids=["pgvector", "plain"])
def table(request: pytest.FixtureRequest, sql: Callable[..., str], index: Index, tmp_path: Path) -> Callable[[str], str]:
    """A database that the script was run in; `plain`: as on a server that does not have pgvector."""
    write(index, "pgvector", tmp_path / "codes.sql")
    script = (tmp_path / "codes.sql").read_text()
    if not request.param:
        script = script.replace("name = 'vector'", "name = 'none'")
    elif sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'").strip() == "0":
        pytest.skip("this PostgreSQL has no extension vector (pgvector)")
    sql("DROP DATABASE IF EXISTS codes WITH (FORCE);\nCREATE DATABASE codes;")
    sql(script, "codes")
    settings = "SET enable_seqscan = off; SET hnsw.ef_search = 400;" if request.param else ""
    return lambda command: sql(f"{settings} {command}", "codes")


def asked(index: Index) -> list[tuple[str, str]]:
    """Queries as the functions take them: bits, and A q."""
    _, q = vectors()
    bits, turned = contents.signs(index.codec, q[:FEW]), contents.turned(index.codec, q[:FEW])
    return [(f"'x{b.tobytes().hex()}'", f"'{{{','.join(map(repr, row.tolist()))}}}'") for b, row in zip(bits, turned)]


def near(table: Callable[[str], str], index: Index) -> Tensor:
    found = [table(f"SELECT id FROM codes_near({bits}, {CANDIDATES})").split() for bits, _ in asked(index)]
    return rows(index, torch.tensor([[int(i) for i in row] for row in found]))


def test_the_nearest_rows_are_ours(request: pytest.FixtureRequest, table: Callable[[str], str], index: Index):
    assert table("SELECT count(*) FROM codes").strip() == str(N)
    far, found = distances(index, vectors()[1][:FEW]), near(table, index)
    if "plain" in request.node.name:
        agree(found, -far)
    else:  # a graph finds most of them
        assert (far.gather(1, found) == far.topk(CANDIDATES, largest=False).values).float().mean() > 0.95


def test_their_scores_are_ours(table: Callable[[str], str], index: Index):
    scores, found = contents.turned(index.codec, vectors()[1][:FEW]) @ everything(index).vectors.T, near(table, index)
    answers = [table(f"SELECT * FROM codes_search({bits}, {q}, {K}, {CANDIDATES})").split() for bits, q in asked(index)]
    ids, told = ([[float(line.split("|")[part]) for line in answer] for answer in answers] for part in (0, 1))
    best = rows(index, torch.tensor(ids).long())
    torch.testing.assert_close(torch.tensor(told), scores.gather(1, best), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(told), scores.gather(1, found).topk(K).values, atol=1e-5, rtol=1e-5)


def test_ids_that_are_text_stay_text(sql: Callable[..., str], tmp_path: Path):
    write(texts(), "pgvector", tmp_path / "codes.sql")
    sql("DROP DATABASE IF EXISTS codes WITH (FORCE);\nCREATE DATABASE codes;")
    sql((tmp_path / "codes.sql").read_text(), "codes")
    assert json.loads(sql("SELECT json_agg(id) FROM codes", "codes")) == texts().texts_of(texts().names)


@pytest.mark.parametrize("table", [True], indirect=True, ids=["pgvector"])
def test_pgvector_looks_into_its_graph(table: Callable[[str], str], index: Index):
    assert "Index Scan using codes_bits" in table(f"EXPLAIN SELECT * FROM codes_near({asked(index)[0][0]}, 20)")
