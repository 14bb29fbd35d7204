"""Vectors as codes: laws of every codec, of the index around it, and of its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

import bitwright
from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.book import Book
from bitwright.embed.books import Allotted
from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.levels import Scalar, lloyd_max, uniform
from bitwright.embed.projections import Itq, Principal, Rotation
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import difference, ndcg, overlap
from bitwright.kernels.dispatch import only

DIM = 32


def clustered(n: int = 600, dim: int = DIM) -> Tensor:
    """Groups of vectors whose directions are of unequal size, as those of models are."""
    size = torch.logspace(0, -1, dim)
    return (torch.randn(24, dim)[torch.randint(24, (n,))] + 0.5 * torch.randn(n, dim)) * size + 0.3


def exact(x: Tensor, q: Tensor, k: int) -> Tensor:
    return (torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(x).T).topk(k).indices


@pytest.fixture(scope="module")
def index() -> Index:
    torch.manual_seed(0)
    x = clustered()
    return Index.build(codecs.fit(x, 2.0), x)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("name", codecs.NAMED)
def test_the_score_of_a_document_is_the_product_with_what_it_decodes_to(name: str, metric: str):
    x, q = clustered(), clustered(8)
    codec = codecs.fit(x, 1.0, name, metric=metric)
    codes = codec.encode(x)
    hits = Index.build(codec, x).search(q, len(x))
    dense = codec.queries(q) @ codec.decode(codes).T
    torch.testing.assert_close(hits.scores, dense.gather(1, hits.ids), rtol=1e-4, atol=1e-4)
    assert codec.bits <= 1.0 and (hits.scores[:, 1:] <= hits.scores[:, :-1]).all()


@pytest.mark.parametrize("name", codecs.NAMED)
def test_a_query_may_be_a_code_too(name: str):
    x = clustered()
    codec = codecs.fit(x, 2.0, name)
    codes = codec.encode(x[:5])
    hits = Index.build(codec, x).search(codes, len(x))
    dense = codec.decode(codes) @ codec.decode(codec.encode(x)).T
    torch.testing.assert_close(hits.scores, dense.gather(1, hits.ids), rtol=1e-4, atol=1e-4)


def test_another_codec_may_ask_where_it_is_listed(index: Index):
    x = clustered()
    again, other = replace(index.codec), codecs.fit(x, 1.0)
    assert torch.equal(index.search(x[:3], 5, by=again).ids, index.search(x[:3], 5).ids)
    with pytest.raises(BadRequest, match=f"of space {other.space_id}"):
        index.search(x[:3], 5, by=other)
    listing = replace(index, about={"compatible": [other.space_id]})
    assert listing.search(x[:3], 5, by=other).ids.shape == (3, 5)


@pytest.mark.parametrize("name", ["allotted", "rotated", "itq", "product"])
def test_more_bits_are_nearer(name: str):
    x = clustered()
    lost = []
    for bits in (0.5, 1.0, 2.0, 4.0):
        codec = codecs.fit(x, bits, name, metric="ip")
        lost.append(float((codec.decode(codec.encode(x)) - x).square().sum()))
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.2 * lost[0]


@pytest.mark.parametrize("name", ["rotated", "uniform", "itq"])
def test_bits_between_two_grids_are_used(name: str):
    x, lost = clustered(), []
    for bits in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        codec = codecs.fit(x, bits, name, metric="ip")
        assert bits - 0.13 < codec.bits <= bits
        lost.append(float((codec.decode(codec.encode(x)) - x).square().sum()))
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0])
def test_bits_where_they_are_worth_most_lose_least(bits: float):
    x, fresh = (torch.randn(2500, DIM) * torch.logspace(0, -1, DIM)).split([2000, 500])

    def lost(name: str) -> float:
        codec = codecs.fit(x, bits, name, metric="ip")
        return float((codec.decode(codec.encode(fresh)) - fresh).square().sum())

    assert lost("allotted") < min(lost(name) for name in ("rotated", "itq", "product"))


def test_the_plan_of_runs_is_the_best_one():
    """Against every composition of four coordinates into runs that are kept or left out at the end."""
    y = torch.randn(300, 4) * torch.tensor([4.0, 1.0, 0.5, 0.1])
    book = Allotted(widths=(1, 2, 4), rounds=10)(y, 2)
    assert len(book.starts) <= 2 and int(book.starts[0]) == 0
    spent = book.widths.tolist()
    assert sum(spent) >= 2 or spent == [1, 1]  # the large coordinate is never left out, nor coded with its small neighbours alone
    assert float((book.decode(book.encode(y)) - y).square().sum()) < 0.2 * float(y.square().sum())


def test_points_of_a_normal_number_are_means_of_what_is_nearest_to_them():
    z = torch.randn(400_000)
    for levels in (2, 4, 16):
        points = lloyd_max(levels)
        nearest = (z[:, None] - points).abs().argmin(1)
        means = torch.stack([z[nearest == i].mean() for i in range(levels)])
        torch.testing.assert_close(points, means, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("name", codecs.NAMED)
def test_a_codec_is_saved_alone(name: str, tmp_path: Path):
    codec, x = codecs.fit(clustered(), 1.0, name), clustered(50)
    codecs.save(codec, tmp_path / "a.codes")
    again = codecs.load(tmp_path / "a.codes")
    assert again.space_id == codec.space_id and torch.equal(again.decode(again.encode(x)), codec.decode(codec.encode(x)))


@pytest.mark.parametrize("name", codecs.NAMED)
def test_every_codec_serves_the_whole_dial(name: str):
    """From half a bit to eight, where there are more nibbles than coordinates, each step loses less."""
    x = clustered(600)
    lost = [
        float((codec.decode(codec.encode(x)) - normalize(x)).norm()) for codec in (codecs.fit(x, b, name) for b in (0.5, 2.0, 8.0))
    ]
    assert lost == sorted(lost, reverse=True) and lost[2] < 0.1 * lost[0]


@pytest.mark.parametrize("name", codecs.NAMED)
def test_compiled_loops_code_as_plain_torch_does(name: str):
    """Close calls may go either way."""
    x, fresh = clustered(900).split([600, 300])
    codec = codecs.fit(x, 2.0, name)
    y = codec.view.seen(fresh)
    with only("reference"):
        plain = codec.book.encode(y)
        near = codec.book.decode(plain)
    codes = codec.book.encode(y)
    assert float((codes != plain).float().mean()) < 1e-3 and torch.equal(codec.book.decode(plain), near)
    torch.testing.assert_close((codec.book.decode(codes) - y).norm(), (near - y).norm(), rtol=1e-4, atol=0)
    for where, dims in ((codec.book.starts - 1, DIM), (codec.book.starts, DIM // 2)):
        with pytest.raises(ValueError, match="do not lie within"):
            Book(where, codec.book.widths, codec.book.points, dims)


@pytest.mark.parametrize("spacing", ["lloyd-max", "uniform"])
def test_grids_of_any_number_of_levels(spacing: str):
    """As many values as asked, each coordinate at the nearest, and more of them lose less."""
    y, lost = torch.randn(4000, 4), []
    for levels in (2, 3, 4, 7, 16) if spacing == "lloyd-max" else (2, 3, 4, 7, 16, 18, 96, 255, 256):
        book = Scalar(levels, spacing)(y, 99)
        near = book.decode(book.encode(y))
        values = near.round(decimals=5).unique()
        assert len(values) == levels or (levels >= 96 and 0.7 * levels < len(values) <= levels)
        torch.testing.assert_close((near - y).abs(), (y[..., None] - values).abs().amin(2), atol=1e-4, rtol=0)
        assert spacing == "lloyd-max" or levels >= 96 or torch.allclose(values.diff(), values.diff()[:1], atol=1e-4)
        lost.append(float((near - y).square().mean()))
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
def test_equal_steps_are_the_best_equal_steps(levels: int):
    """No other step loses less, none at all of the best points loses more; two levels are those of Lloyd and Max."""
    z, points = torch.randn(200_000, generator=torch.Generator().manual_seed(1)), uniform(levels)

    def lost(points: Tensor) -> float:
        cells = torch.bucketize(z, (points[1:] + points[:-1]) / 2)
        return float((z - points[cells]).square().mean())

    assert all(lost(points) < lost(points * stretch) for stretch in (0.9, 1.1))
    assert levels > 16 or lost(lloyd_max(levels)) <= lost(points) * 1.001
    assert levels != 2 or torch.allclose(points, lloyd_max(2), atol=1e-3)


@pytest.mark.parametrize("projection", [Rotation(), Principal(), Itq(rounds=5)])
def test_maps_keep_lengths(projection):
    A = projection(clustered(), 16)
    torch.testing.assert_close(A @ A.T, torch.eye(16), atol=1e-4, rtol=0)


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
        "allotted,rotated",
    )
    capsys.readouterr()
    assert run(*asked, "--qrels", tmp_path / "qrels.tsv", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["float_ndcg"] == pytest.approx(1) and len(told["lines"]) == 4
    assert run(*asked) == 0 and "against rotated" in capsys.readouterr().out
