"""Codecs that are trained, by name and for queries with known answers: what they find, and what stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from clusters import DIM, clustered
from torch import Tensor
from torch.nn.functional import normalize

from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.answered import Learned, answers, learn
from bitwright.embed.index import Index
from bitwright.embed.jpq import Jpq
from bitwright.embed.names import Names
from bitwright.embed.steered import Steered
from bitwright.embed.views import View, told
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import Gains, difference, reciprocal_rank
from bitwright.training.loop import Training

N = 400
HOW = Training(steps=80, warm=0.05)
BRIEF = Training(steps=6, checks=2)


def turned(x: Tensor, much: float = 0.1) -> Tensor:
    """As queries see documents that are coded as they are: all by the same map, which is nearly a rotation."""
    plane = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))
    return normalize(x) @ torch.linalg.matrix_exp(much * (plane - plane.T)) + 0.02 * torch.randn(len(x), DIM)


def own(rows: Tensor) -> Gains:
    return [{row: 1.0} for row in rows.tolist()]


@pytest.fixture(scope="module")
def x() -> Tensor:
    torch.manual_seed(0)
    return clustered(N)


@pytest.fixture(scope="module", params=[(2.0, "additive", "cosine"), (1.0, "rotated", "ip")], ids=str)
def before(request: pytest.FixtureRequest, x: Tensor) -> Index:
    bits, name, metric = request.param
    torch.manual_seed(0)
    index = Index.build(codecs.fit(x, bits, name, metric=metric), x)
    index.divide(4, 2)
    return index


@pytest.fixture(scope="module")
def after(before: Index, x: Tensor) -> Learned:
    """Taught by queries for every second document."""
    rows = before.names[::2]
    return learn(before, turned(x[rows]), own(torch.arange(N)[::2]), (1e-3, 1e-3), HOW)


# --- queries with known answers ----------------------------------------------------------------------------------------------


def test_queries_that_see_documents_askew_find_them(before: Index, after: Learned, x: Tensor):
    """Those that were held out, and those for documents that no query was for."""
    assert after.queries == N // 10 and after.gain.low > 0
    fresh = before.names[1::2]
    q = turned(x[fresh])
    ranks = [reciprocal_rank(index.search(q, 50, probes=4).ids, fresh[:, None]) for index in (before, after.index)]
    assert difference(*ranks).low > 0


def test_codes_and_names_stay_and_new_documents_are_coded_as_the_old_ones(before: Index, after: Learned, x: Tensor):
    index, fresh = after.index, clustered(40)
    assert index.codes is before.codes and index.factor is before.factor and index.ids is before.ids
    old, new = before.codec.encode(fresh), index.codec.encode(fresh)
    assert torch.equal(old.nibbles, new.nibbles) and torch.equal(old.factor, new.factor)
    assert index.codec.space_id != before.codec.space_id and not torch.equal(index.codec.book.points, before.codec.book.points)


def test_a_file_holds_all_that_was_learned(after: Learned, x: Tensor, tmp_path: Path):
    after.index.save(tmp_path / "a.codes")
    again, q = Index.open(tmp_path / "a.codes"), turned(x[:20])
    one, other = again.search(q, 30), after.index.search(q, 30)
    assert torch.equal(one.ids, other.ids) and torch.equal(one.scores, other.scores)
    assert again.codec.space_id == after.index.codec.space_id and again.about == after.index.about
    codecs.save(after.index.codec, tmp_path / "alone.codes")
    assert torch.equal(codecs.load(tmp_path / "alone.codes").asked(q).y, after.index.codec.asked(q).y)


def test_who_learns_again_goes_on(after: Learned, x: Tensor):
    found = learn(after.index, turned(x[after.index.names]), own(torch.arange(N)), how=BRIEF)
    view = found.index.codec.view
    assert isinstance(view, Steered) and not isinstance(view.view, Steered)
    assert found.after >= after.before and found.index.codec.name == after.index.codec.name
    assert torch.equal(found.index.codec.encode(x).nibbles, after.index.codec.encode(x).nibbles)


def test_what_nothing_is_gained_by_is_told_as_such(before: Index, x: Tensor):
    fine = Index.build(codecs.fit(x, 8.0), x)
    found = learn(fine, x, own(torch.arange(N)), how=BRIEF)
    assert found.gain.value == 0 and found.before == found.after == 1.0 and found.index.codec is fine.codec


def test_no_answer_of_a_query_counts_against_another(x: Tensor):
    """And each takes part once, found or not."""
    codec, seen = codecs.fit(x, 1.0, "rotated"), []
    known = answers([{i: 1.0, i + 1: 2.0, i + 2: 0.0} if i % 3 else {i: 1.0} for i in range(N - 1)])
    wanted = [[i, i + 1] if i % 3 else [i] for i in range(N - 1)]

    def loss(scores: Tensor, positive: Tensor, rows: Tensor, documents: Tensor) -> Tensor:
        for score, mine, ids in zip(scores, positive, documents):
            there, others = ids[mine & score.isfinite()].tolist(), ids[~mine & score.isfinite()].tolist()
            assert sorted(there) in wanted and not set(there) & set(others)
            seen.append(len(there))
        return scores[positive & scores.isfinite()].mean()

    Jpq.train(codec, codec.encode(x), x[:-1], known, loss, results=3, how=BRIEF)
    assert set(seen) == {1, 2}


def test_reciprocal_ranks_are_those_of_a_loop():
    ids, known = torch.randint(-1, 12, (50, 8)), torch.randint(-1, 12, (50, 3))
    for row, mine, found in zip(ids.tolist(), known.tolist(), reciprocal_rank(ids, known)):
        places = [at for at, i in enumerate(row, 1) if i in mine and i >= 0]
        assert float(found) == pytest.approx(1 / places[0] if places else 0)


# --- the view ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["additive", "bebr"])
def test_a_steered_view_starts_as_the_one_that_it_holds(name: str, x: Tensor):
    options = {"how": Training(steps=0)} if name == "bebr" else {}
    codec = codecs.fit(x, 1.0, name, **options)
    steered = replace(codec, view=Steered.start(codec.view))
    one, other = (Index.build(c, x) for c in (codec, steered))
    assert torch.equal(one.codes.data, other.codes.data) and isinstance(steered.view, View)
    torch.testing.assert_close(other.search(x[:9], 20).scores, one.search(x[:9], 20).scores)
    codes = codec.encode(x[:9])
    assert torch.equal(other.search(codes, 20).scores, one.search(codes, 20).scores)
    again = told(steered.view.tensors(), steered.view.meta())
    assert torch.equal(again.asked(normalize(x[:9])).y, steered.view.asked(normalize(x[:9])).y)


def test_scores_stay_on_the_scale_of_the_vectors(x: Tensor):
    """However the network stretches."""
    codec = codecs.fit(x, 4.0)
    start = Steered.start(codec.view)
    stretched = replace(codec, view=replace(start, change=replace(start.change, skip=7 * start.change.skip)))
    one, other = (Index.build(c, x).search(x[:9], 20) for c in (codec, stretched))
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(other.scores, one.scores)


# --- bebr by name ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0.25, 0.5, 0.9, 1.0, 2.0, 3.0, 4.0])
def test_planes_fill_the_bits_and_more_are_nearer(bits: float, x: Tensor, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    codec = codecs.fit(x, bits, "bebr", lambda *step: told.append(step), how=BRIEF)
    assert bits - 4 / DIM < codec.bits <= bits and codec.name == f"bebr-{bits:g}"
    assert told == [("training", step, 6) for step in range(1, 7)]
    codecs.save(codec, tmp_path / "a.codes")
    again = codecs.load(tmp_path / "a.codes")
    assert again.space_id == codec.space_id and torch.equal(again.encode(x).nibbles, codec.encode(x).nibbles)


def test_what_planes_cannot_give_is_named(x: Tensor):
    for what, words in (
        (lambda: codecs.fit(x, 1.5, "bebr"), "choose 1, 2, 3 or 4"),
        (lambda: codecs.fit(x, 8.0, "bebr"), "choose 1, 2, 3 or 4"),
        (lambda: codecs.fit(x, 1.0, "bebr", metric="ip"), "choose cosine"),
        (lambda: codecs.fit(x[:, :6], 0.5, "bebr"), "no nibble of a plane"),
        (lambda: codecs.fit(x[:9], 1.0, "bebr"), "too few"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()


# --- commands ----------------------------------------------------------------------------------------------------------------


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = console.ends(lambda: app(["index", *map(str, words)]))
        return code, *capsys.readouterr()

    return command


def saved(path: Path, x: Tensor) -> Path:
    np.save(path, x.numpy())
    return path


@pytest.fixture
def named(x: Tensor, tmp_path: Path) -> Path:
    """A file of documents that are known by text."""
    index = Index.build(codecs.fit(x, 1.0, "rotated"), x, [f"doc {i}" for i in range(N)])
    index.about = {"measured": "of this codec"}
    index.save(tmp_path / "a.codes")
    return tmp_path / "a.codes"


def test_the_command_trains_and_writes_another_file(named: Path, x: Tensor, tmp_path: Path, run: Run):
    q, qrels, new = saved(tmp_path / "q.npy", turned(x)), tmp_path / "qrels.tsv", tmp_path / "new.codes"
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{i}\tdoc {i}\t1\n{i}\tdoc none\t1\n" for i in range(N)))
    before = named.read_bytes()
    code, said, progress = run("train", named, "--queries", q, "--qrels", qrels, "-o", new, "--steps", 50)
    assert code == 0 and f"{N // 5} held-out queries" in said and "->" in said and "training: 50 of 50" in progress
    assert named.read_bytes() == before
    old, trained = Index.open(named), Index.open(new)
    assert torch.equal(old.codes.data, trained.codes.data) and isinstance(trained.texts, Names)
    assert "measured" not in trained.about and "held-out" in str(trained.about["trained"])
    assert run("search", new, q, "-k", 3)[1].count("doc 7 ") >= run("search", named, q, "-k", 3)[1].count("doc 7 ")
    assert run("add", new, q)[0] == 2, "documents known by text need names"
    code, _, said = run("train", named, "--queries", q, "--qrels", qrels, "-o", new)
    assert code == 2 and "--overwrite" in said


def test_the_command_writes_nothing_where_nothing_is_gained(x: Tensor, tmp_path: Path, run: Run):
    file, q = tmp_path / "a.codes", saved(tmp_path / "q.npy", x)
    Index.build(codecs.fit(x, 8.0), x).save(file)
    (tmp_path / "qrels.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(N)))
    code, _, said = run("train", file, "--queries", q, "--qrels", tmp_path / "qrels.tsv", "-o", tmp_path / "new", "--steps", 2)
    assert code == 3 and "Nothing was gained" in said and not (tmp_path / "new").exists()


def test_what_cannot_be_learned_from_is_told(named: Path, x: Tensor, tmp_path: Path, run: Run):
    qrels, new, nan = tmp_path / "qrels.tsv", tmp_path / "new.codes", x.clone()
    nan[3, 2] = torch.nan
    (tmp_path / "q.txt").write_text("what is a code\n")
    few = "".join(f"{i}\tdoc {i}\t1\n" for i in range(19)) + "40\tdoc 40\t0\n"
    many = "".join(f"{i}\tdoc {i}\t1\n" for i in range(50))
    for name, (q, judged, words) in enumerate((
        (saved(tmp_path / "a.npy", x), "0\tdoc nine\t1\n", "check their ids"),
        (saved(tmp_path / "b.npy", x), few, "19 queries have an answer"),
        (saved(tmp_path / "c.npy", x[:, :5]), many, "has 5 dimensions"),
        (saved(tmp_path / "d.npy", nan), many, "Query 3 holds nan"),
        (saved(tmp_path / "e.npy", x), "0 doc\n", "no table of judgements"),
        (tmp_path / "q.txt", many, "--model"),
        (tmp_path / "none.npy", many, "no file"),
    )):  # fmt: skip
        qrels.write_text(judged)
        code, _, said = run("train", named, "--queries", q, "--qrels", qrels, "-o", new)
        lines = said.strip().splitlines()
        assert code == 2 and lines[-1].startswith("error:") and words in lines[-1], (name, said)
        assert not new.exists()


def test_bebr_is_built_like_any_other(x: Tensor, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(codecs.NAMED, "bebr", partial(codecs.recurrent, how=BRIEF))
    file, q = tmp_path / "a.codes", saved(tmp_path / "x.npy", x)
    code, said, progress = run("build", q, "-o", file, "--codec", "bebr", "--bits", 2)
    assert code == 0 and "bebr-2" in said and "training:" in progress
    assert run("search", file, q, "-k", 3)[0] == 0
    assert run("evaluate", q, "--queries", q, "--bits", "1", "--codecs", "bebr,rotated")[0] == 0
    code, _, said = run("build", q, "-o", tmp_path / "b.codes", "--codec", "bebr", "--bits", 1.5)
    assert code == 2 and "choose 1, 2, 3 or 4" in said
