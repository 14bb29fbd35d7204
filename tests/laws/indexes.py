"""An index of codes: what is added, removed, allowed and found; its file; its commands."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clusters import clustered, exact
from safetensors.torch import save_file

import bitwright
from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.levels import Scalar
from bitwright.embed.projections import Rotation
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import difference, ndcg, overlap


@pytest.fixture(scope="module")
def index() -> Index:
    torch.manual_seed(0)
    x = clustered()
    return Index.build(codecs.fit(x, 2.0), x)


def test_another_codec_may_ask_where_it_is_listed(index: Index):
    x = clustered()
    again, other = replace(index.codec), codecs.fit(x, 1.0)
    assert torch.equal(index.search(x[:3], 5, by=again).ids, index.search(x[:3], 5).ids)
    with pytest.raises(BadRequest, match=f"of space {other.space_id}"):
        index.search(x[:3], 5, by=other)
    listing = replace(index, about={"compatible": [other.space_id]})
    assert listing.search(x[:3], 5, by=other).ids.shape == (3, 5)


def test_a_search_finds_what_an_exact_one_finds(index: Index):
    x, q = clustered(), clustered(20)
    assert (index.search(q, len(index)).ids.sort(1).values == torch.arange(len(index))).all()
    fine = Index.build(codecs.fit(x, 8.0), x)
    assert float(overlap(fine.search(q, 10, oversample=4.0).ids, exact(x, q, 10)).mean()) > 0.95


def test_a_filter_is_the_same_as_ids_a_mask_or_a_bitmap(index: Index):
    q, mask = clustered(5), torch.rand(len(index)) < 0.3
    bits = torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
    found = [index.search(q, 5, allowed=how) for how in (mask.nonzero()[:, 0], mask, bits)]
    assert all(torch.equal(found[0].ids, other.ids) for other in found) and mask[found[0].ids].all()
    assert found[0].visited == int(mask.sum())
    few = index.search(q, 5, allowed=torch.tensor([3, 7]))
    assert (few.ids[:, 2:] == -1).all() and few.scores[:, 2:].isinf().all()


def test_what_is_added_and_removed_is_as_if_it_had_been_so_from_the_start():
    x = clustered(101)
    codec = codecs.fit(x, 1.0)
    grown = Index.empty(codec)
    for part in x.split(30):
        grown.add(part)
    whole = Index.build(codec, x)
    assert torch.equal(grown.codes.data, whole.codes.data)
    grown.remove(torch.arange(10, 50))
    kept = torch.cat([torch.arange(10), torch.arange(50, 101)])
    a, b = grown.search(x[:4], 20), Index.build(codec, x[kept], kept).search(x[:4], 20)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.scores, b.scores)
    grown.add(x[10:12])
    assert grown.names[-2:].tolist() == [101, 102]


def test_a_file_is_mapped_and_holds_the_same_index(index: Index, tmp_path: Path):
    index.save(tmp_path / "a.codes")
    read = Index.open(tmp_path / "a.codes")
    q = clustered(4)
    assert read.codec.space_id == index.codec.space_id and torch.equal(read.search(q, 9).ids, index.search(q, 9).ids)
    assert [p.name for p in tmp_path.iterdir()] == ["a.codes"]
    other = codecs.fit(clustered(), 2.0)
    assert other.space_id != index.codec.space_id and codecs.fit(clustered(), 2.0, metric="ip").space_id != other.space_id


def test_a_write_that_fails_leaves_the_old_file(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index.save(tmp_path / "a.codes")
    before = (tmp_path / "a.codes").read_bytes()

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("bitwright.embed.codefile.save_file", broken)
    with pytest.raises(BadRequest, match="Cannot write"):
        index.save(tmp_path / "a.codes")
    assert (tmp_path / "a.codes").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bad_input_gets_a_sentence_and_loses_nothing(index: Index, tmp_path: Path):
    q, x = clustered(2), clustered(3)
    worse, zero = x.clone(), x.clone()
    worse[1, 2], zero[2] = torch.nan, 0
    for what, words in (
        (lambda: index.search(q, len(index) + 1), "choose k"),
        (lambda: index.search(q[:, :5], 3), "dimensions"),
        (lambda: index.add(worse), "Vector 1 holds nan"),
        (lambda: index.add(zero), "Vector 2 is zero"),
        (lambda: index.add(x, torch.tensor([900, 900, 901])), "there twice"),
        (lambda: index.add(x, torch.tensor([1, 900, 901])), "there twice"),
        (lambda: index.add(index.codec.encode(x), space="0123"), "space 0123"),
        (lambda: index.remove(torch.tensor([5, 10_000])), "10000 is not in the index"),
        (lambda: index.search(q, 3, allowed=torch.ones(3, dtype=torch.bool)), "mask"),
        (lambda: codecs.fit(x, 1.0), "too few"),
        (lambda: codecs.fit(clustered(), 9.0), "out of reach"),
        (lambda: codecs.fit(clustered(), 1.0, "magic"), "no codec"),
        (lambda: Codec.fit(clustered(), 8, Rotation(), Scalar(1)), "choose 2 to 256"),
        (lambda: Codec.fit(clustered(), 8, Rotation(), Scalar(17)), "choose uniform"),
        (lambda: Codec.fit(clustered(), 8, Rotation(), Scalar(2), dims=30), "multiple of 4"),
        (lambda: Index.open(tmp_path / "none"), "no file"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()
        assert len(index) == 600 and index.ids is None


def test_damaged_and_foreign_files_are_named(index: Index, tmp_path: Path):
    path = tmp_path / "a.codes"
    index.save(path)
    raw = path.read_bytes()
    for damage in (raw[:-7], raw[:100], b"", b"x" * 50):
        path.write_bytes(damage)
        with pytest.raises(BadRequest, match="damaged"):
            Index.open(path)
    save_file({"w": torch.zeros(2, 2)}, path)
    with pytest.raises(BadRequest, match="holds no codes"):
        Index.open(path)


def test_ranking_measures():
    gains = [{3: 2.0, 5: 1.0}, {}]
    first = ndcg(torch.tensor([[3, 5, 1], [1, 2, 3]]), gains)
    assert float(first[0]) == pytest.approx(1) and first[1].isnan()
    assert float(ndcg(torch.tensor([[5, 3, 1], [1, 2, 3]]), gains)[0]) < 1
    a = torch.rand(200).double()
    surely, same = difference(a, a + 0.1), difference(a, a)
    assert surely.low > 0 and same.low == same.high == 0
    assert overlap(torch.tensor([[1, 2]]), torch.tensor([[2, 9]])).tolist() == [0.5]


def test_the_commands_build_search_grow_and_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    x, q, file = clustered(300), clustered(6), tmp_path / "v.codes"
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "q.npy", q.numpy())
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{i}\t{exact(x, q, 1)[i, 0]}\t1\n" for i in range(6))
    )

    def run(*words: object) -> int:
        return console.ends(lambda: app([str(word) for word in words]))

    assert run("index", "build", tmp_path / "x.npy", "-o", file, "--bits", 2) == 0
    assert run("index", "build", tmp_path / "x.npy", "-o", file) == 2
    capsys.readouterr()
    assert run("index", "search", file, tmp_path / "q.npy", "-k", 3, "--json") == 0
    assert np.shape([row["ids"] for row in json.loads(capsys.readouterr().out)["hits"]]) == (6, 3)
    assert run("index", "add", file, tmp_path / "q.npy") == 0 and len(bitwright.Index.open(file)) == 306
    assert run("index", "remove", file, 300, 301) == 0 and run("index", "remove", file, 300) == 2
    asked = (
        "index",
        "evaluate",
        tmp_path / "x.npy",
        "--queries",
        tmp_path / "q.npy",
        "--bits",
        "0.5,4",
        "--codecs",
        "additive,rotated",
    )
    capsys.readouterr()
    assert run(*asked, "--qrels", tmp_path / "qrels.tsv", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["float_ndcg"] == pytest.approx(1) and len(told["lines"]) == 4
    assert run(*asked) == 0 and "against rotated" in capsys.readouterr().out
