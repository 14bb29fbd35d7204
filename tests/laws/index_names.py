"""Documents that are known by text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.names import Names
from bitwright.errors import BadRequest

DIM = 16


def some(n: int) -> Tensor:
    return torch.randn(n, DIM)


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    return codecs.fit(some(200), 2.0)


def test_documents_may_be_known_by_text(codec: Codec, tmp_path: Path):
    x, texts = some(50), [f"ä-{i}" if i % 2 else f"doc {i}" for i in range(50)]
    index, numbered = Index.empty(codec), Index.build(codec, x)
    for part in (slice(0, 20), slice(20, 50)):
        index.add(x[part], texts[part])
    hits, q = index.search(x[:4], 5), numbered.search(x[:4], 5)
    assert [index.texts_of(row) for row in hits.ids] == [[texts[i] for i in row] for row in q.ids.tolist()]
    index.remove(index.ids_of(texts[10:30]))
    index.add(x[10:11], ["again"])
    index.save(tmp_path / "a.codes")
    read = Index.open(tmp_path / "a.codes")
    kept = texts[:10] + texts[30:] + ["again"]
    assert read.texts is not None and read.texts[torch.arange(len(read))] == kept
    assert read.texts_of(read.search(x[40:41], 1).ids[0]) == [texts[40]] and read.texts_of(read.ids_of(kept)) == kept
    for what, words in (
        (lambda: read.add(x[:1], ["again"]), "there twice"),
        (lambda: read.add(x[:2], ["new", "new"]), "there twice"),
        (lambda: read.add(x[:2], ["new"]), "1 ids for 2"),
        (lambda: read.add(x[:1]), "known by text|by text"),
        (lambda: read.ids_of(["doc 10"]), "doc 10 is not"),
        (lambda: numbered.add(x[:1], ["new"]), "by number"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()
    assert len(read) == 31 and len(numbered) == 50


def test_names_come_back(tmp_path: Path):
    words = ["", "a", "ß∂", "", "x" * 300, "🦆"]
    names = Names.of(words[:2]).and_also(["ß∂"])
    assert names[torch.arange(3)] == words[:3] and Names.of(words)[torch.tensor([5, 0, 2, 3])] == ["🦆", "", "ß∂", ""]


def test_commands_speak_of_documents_as_their_source_does(codec: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    x, texts = some(60), [f"MED-{i}" for i in range(60)]
    pq.write_table(pa.table({"id": texts, "v": list(x.numpy())}), tmp_path / "x.parquet")
    q = tmp_path / "q.npy"
    np.save(q, x[:2].numpy())

    def run(*words: object) -> str:
        capsys.readouterr()
        assert console.ends(lambda: app(["index", *map(str, words)])) == 0
        return capsys.readouterr().out

    file = tmp_path / "a.codes"
    run("build", tmp_path / "x.parquet", "-o", file, "--bits", 4)
    assert "MED-1" in run("search", file, q, "-k", 3)
    assert json.loads(run("search", file, q, "-k", 3, "--json"))["hits"][1]["ids"][0] == "MED-1"
    run("remove", file, "MED-1", "MED-7")
    assert len(Index.open(file)) == 58 and "MED-1 " not in run("search", file, q, "-k", 3)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n0\tMED-0\t1\n1\tMED-1\t1\n")
    judged = ("--queries", q, "--qrels", tmp_path / "qrels.tsv", "--bits", 4, "--codecs", "rotated", "--json")
    assert json.loads(run("evaluate", tmp_path / "x.parquet", *judged))["float_ndcg"] == pytest.approx(1)
