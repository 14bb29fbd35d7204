"""What is written is written whole or refused in a sentence, from Python and from the command."""

import json
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow.parquet
import pytest
import torch
from neighbours import coded, everything, texts, vectors

from bitwright import console
from bitwright.cli import app
from bitwright.embed.engines import ENGINES, contents
from bitwright.embed.engines.writing import write
from bitwright.embed.index import Index
from bitwright.errors import BadRequest

BITS = sorted(set(ENGINES) - {"faiss-pq", "faiss-ivfpq", "lance-pq", "vespa", "parquet", "qdrant"})


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_written_and_replaced_whole(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, index = tmp_path / "deep" / "out", coded()
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(contents, "PART", 1000)
    assert write(index, engine, out, progress=lambda _, done, of: seen.append((done, of))).endswith(".")
    assert seen == [(1000, 3000), (2000, 3000), (3000, 3000)]
    with pytest.raises(BadRequest, match="there already"):
        write(index, engine, out)
    write(index, engine, out, overwrite=True)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("engine", BITS)
@pytest.mark.parametrize("made", [("additive", 1.0), ("product", 1.0), ("rotated", 2.0)])
def test_codes_that_are_no_bits_are_refused(engine: str, made: tuple[str, float], tmp_path: Path):
    with pytest.raises(BadRequest, match=rf"{engine} takes one bit per coordinate .*--codec rotated or itq, --bits 1\."):
        write(coded(*made), engine, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["faiss-pq", "faiss-ivfpq", "lance-pq"])
@pytest.mark.parametrize("made", [("additive", 1.0), ("residual", 0.25), ("rotated", 8.0), ("product", 0.7)])
def test_books_of_other_runs_are_refused(engine: str, made: tuple[str, float], tmp_path: Path):
    with pytest.raises(BadRequest, match=rf"{engine} takes runs of one width .* or with --codec product"):
        write(coded(*made), engine, tmp_path / "out")


@pytest.mark.parametrize("made", [("additive", 1.0), ("rotated", 4.0)])
def test_vespa_refuses_what_is_no_planes_of_bits(made: tuple[str, float], tmp_path: Path):
    with pytest.raises(BadRequest, match="one or two bits per coordinate"):
        write(coded(*made), "vespa", tmp_path / "out")


def test_bad_requests_leave_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index, mine = coded(), tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for what, words in (
        (lambda: write(index, "magic", tmp_path / "x"), "no engine 'magic'; choose one of faiss-flat"),
        (lambda: write(Index.empty(index.codec), "usearch", tmp_path / "x"), "no documents"),
        (lambda: write(index, "milvus", mine, overwrite=True), "did not write"),
        (lambda: write(index, "pgvector", mine / "letter.txt" / "x"), "Cannot write"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()
    write(index, "pgvector", tmp_path / "a.sql")
    before = (tmp_path / "a.sql").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(contents, "packed", full)
    with pytest.raises(BadRequest, match="no space left"):
        write(index, "pgvector", tmp_path / "a.sql", overwrite=True)
    assert (tmp_path / "a.sql").read_bytes() == before and {p.name for p in tmp_path.iterdir()} == {"mine", "a.sql"}


@pytest.mark.parametrize(
    "engine, read",
    [
        ("vespa", lambda out: [json.loads(line)["fields"]["id"] for line in (out / "feed.jsonl").read_text().splitlines()]),
        ("milvus", lambda out: [row["id"] for row in json.loads((out / "rows.json").read_text())["rows"]]),
        ("elasticsearch", lambda out: [json.loads(a)["index"]["_id"] for a in (out / "bulk.ndjson").read_text().splitlines()[::2]]),
        ("mongodb", lambda out: [json.loads(line)["_id"] for line in (out / "documents.jsonl").read_text().splitlines()]),
        ("parquet", lambda out: pyarrow.parquet.read_table(out)["id"].to_pylist()),
        ("lance-bits", lambda out: lance.dataset(out).to_table()["id"].to_pylist()),
        ("lance-pq", lambda out: lance.dataset(out).to_table()["id"].to_pylist()),
    ],
)
def test_ids_that_are_text_stay_text(engine: str, read: Callable[[Path], list[str]], tmp_path: Path):
    assert "texts_of" not in write(texts(), engine, tmp_path / "out")
    assert read(tmp_path / "out") == texts().texts_of(texts().names)


@pytest.mark.parametrize("engine", ["faiss-flat", "faiss-pq", "usearch", "qdrant"])
def test_engines_that_know_numbers_only_say_so(engine: str, tmp_path: Path):
    assert "Index.texts_of(ids)" in write(texts(), engine, tmp_path / "out")


def test_documents_in_cells_keep_their_ids(tmp_path: Path):
    x, _ = vectors()
    index = Index.build(coded().codec, x)
    index.divide(20, 4)
    write(index, "parquet", tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out")
    order = torch.tensor(table["id"].to_pylist()).argsort()
    read = torch.tensor(np.stack(table["vector"].to_numpy()))[order]
    assert torch.equal(read, everything(coded()).vectors) and json.loads(table.schema.metadata[b"bitwright"])["cells"] == 20


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(BadRequest, match="needs the library lance"):
        write(coded(), "lance-bits", tmp_path / "out")


def test_planes_are_found_in_books_of_mirrored_points_only():
    assert len(contents.planes(coded("rotated", 1.0).codec.book)) == 1
    large, small = contents.planes(coded("rotated", 2.0).codec.book)
    values = coded("rotated", 2.0).codec.book.points.unique()
    torch.testing.assert_close(values, torch.tensor([-large - small, small - large, large - small, large + small]))
    assert [contents.planes(coded(*made).codec.book) for made in (("rotated", 4.0), ("product", 1.0), ("rotated", 8.0))] == [[]] * 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    coded().save(tmp_path / "v.codes")

    def run(*words: object) -> int:
        return console.ends(lambda: app(["index", "convert", *map(str, words)]))

    given = (tmp_path / "v.codes", "--to", "elasticsearch", "-o", tmp_path / "out")
    assert run(*given) == 0 and "documents.signed" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "bitwright.json").read_text())["codes"]["count"] == 3000
    assert run(*given) == 2 and run(*given, "--overwrite") == 0
    assert run(tmp_path / "v.codes", "--to", "magic", "-o", tmp_path / "x") == 2
    capsys.readouterr()
    run("--help")
    assert "faiss-pq" in capsys.readouterr().out.replace("\n", "")
