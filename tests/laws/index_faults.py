"""Whatever is given to an index, and whenever its process is killed: one sentence at most, and nothing is lost."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.codec import Codec
from bitwright.embed.codefile import stamp
from bitwright.embed.index import Index
from bitwright.errors import BadRequest

DIM = 16


def some(n: int) -> Tensor:
    return torch.randn(n, DIM)


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    return codecs.fit(some(200), 2.0)


@pytest.fixture
def file(codec: Codec, tmp_path: Path) -> Path:
    Index.build(codec, some(100)).save(tmp_path / "a.codes")
    return tmp_path / "a.codes"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence with which a command is refused."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert console.ends(lambda: app(["index", *map(str, words)])) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error:")
        return lines[-1]

    return run


def array(path: Path, x: Tensor) -> Path:
    np.save(path, x.numpy())
    return path


# --- what is given -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_added_is_told_in_a_sentence_and_changes_nothing(file: Path, tmp_path: Path, told: Callable[..., str]):
    before, x = file.read_bytes(), some(70_000)
    nan, zero = x.clone(), x.clone()
    nan[69_000, 3], zero[5] = torch.nan, 0
    assert "From row 65536 of the input on: Vector 3464 holds nan" in told("add", file, array(tmp_path / "nan.npy", nan))
    assert "Vector 5 is zero" in told("add", file, array(tmp_path / "zero.npy", zero))
    assert "5 dimensions" in told("add", file, array(tmp_path / "thin.npy", x[:9, :5]))
    assert "a matrix" in told("add", file, array(tmp_path / "flat.npy", x[0]))
    assert "no file" in told("add", tmp_path / "none.codes", tmp_path / "nan.npy")
    save_file({"x": x[:2], "ids": torch.tensor([4, 200])}, tmp_path / "twice.safetensors")
    assert "id 4 is there twice" in told("add", file, tmp_path / "twice.safetensors")
    assert file.read_bytes() == before
    for name in ("nan", "zero"):
        assert "Vector" in told("build", tmp_path / f"{name}.npy", "-o", tmp_path / "new.codes")
        assert not (tmp_path / "new.codes").exists()


def test_what_cannot_be_removed_or_found_is_told(file: Path, tmp_path: Path, codec: Codec, told: Callable[..., str]):
    before = file.read_bytes()
    for absent in ("100", "-1", "x", "5.0", "²", "9" * 30):
        assert "not in the index" in told("remove", file, "3", "--", absent) and file.read_bytes() == before
    q = array(tmp_path / "q.npy", some(3))
    assert "choose k" in told("search", file, q, "-k", 101)
    assert "holds nan" in told("search", file, array(tmp_path / "bad.npy", some(2) * torch.nan), "-k", 3)
    assert "5 dimensions" in told("search", file, array(tmp_path / "thin.npy", some(2)[:, :5]), "-k", 3)
    Index.empty(codec).save(tmp_path / "empty.codes")
    assert "empty" in told("search", tmp_path / "empty.codes", q)
    for where in (tmp_path, q, tmp_path / "none"):
        told("search", where, q)
        told("inspect", where)


def test_a_file_cut_anywhere_or_changed_in_its_header_is_refused_or_reads_the_same(file: Path, codec: Codec):
    whole, q = file.read_bytes(), some(3)
    right = Index.open(file).search(q, 10)
    draw, length = random.Random(0), int.from_bytes(whole[:8], "little")
    for trial in range(150):
        if trial < 50:
            damaged = whole[: draw.randrange(len(whole))]
        else:
            at = draw.randrange(8 + length)
            damaged = whole[:at] + bytes([draw.randrange(256)]) + whole[at + 1 :]
        file.write_bytes(damaged)
        try:
            hits = Index.open(file).search(q, 10)
        except BadRequest as error:
            assert "damaged" in str(error) or "no codes" in str(error)
            continue
        assert trial >= 50 and torch.equal(hits.ids, right.ids)


def test_tensors_that_do_not_belong_together_are_refused(file: Path):
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    shorter, narrower = (lambda t: t[:-1]), (lambda t: t[:, :-1])
    damage = {"codes": (shorter, narrower), "factor": (shorter, Tensor.float), "codec.view.matrix": (Tensor.neg,)}
    for name, change in ((name, change) for name, changes in damage.items() for change in changes):
        tensors, changed = load_file(file), file.with_name("changed.codes")
        save_file(tensors | {name: change(tensors[name]).contiguous()}, changed, header)
        with pytest.raises(BadRequest, match="damaged"):
            Index.open(changed)


# --- who writes when ---------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], Any]) -> int:
    """The number of a process that does it and ends, whatever happens."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(codec: Codec, folder: Path) -> None:
    file, x = folder / "a.codes", some(3000)
    Index.build(codec, x[:5]).save(file)
    sizes, strays = [5, 1000, 3000], 0
    indexes = [Index.build(codec, x[:size]) for size in sizes]
    draw = random.Random(0)
    for _ in range(60):
        before = stamp(file)
        child = forked(lambda: [index.save(file) for _ in range(1000) for index in indexes])
        while stamp(file) == before:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        strays += len(list(folder.iterdir())) - 1
        found = Index.open(file)
        assert len(found) in sizes and torch.equal(found.codes.data, indexes[sizes.index(len(found))].codes.data)
    assert strays, "no writer was killed within a write: the moments are badly chosen"
    indexes[1].save(file)
    assert [path.name for path in folder.iterdir()] == ["a.codes"] and len(Index.open(file)) == 1000


def test_a_file_may_be_read_by_whom_its_writer_lets(file: Path):
    (file.parent / "other").write_text("")
    assert file.stat().st_mode == (file.parent / "other").stat().st_mode


def test_who_has_a_file_open_keeps_it_while_others_write(file: Path, codec: Codec):
    q, index = some(4), Index.open(file)
    before = index.search(q, 10)
    other = Index.open(file)
    other.add(some(5000))
    other.save(file)
    Index.build(codec, some(3)).save(file)
    after = index.search(q, 10)
    assert torch.equal(before.ids, after.ids) and torch.equal(before.scores, after.scores)


def test_a_writer_never_undoes_what_another_has_written(file: Path, tmp_path: Path, codec: Codec):
    one, two = Index.open(file), Index.open(file)
    one.add(some(10))
    two.add(some(20))
    one.save(file)
    with pytest.raises(BadRequest, match="changed by another process"):
        two.save(file)
    assert len(Index.open(file)) == 110 and [path.name for path in tmp_path.iterdir()] == ["a.codes"]
    two.save(tmp_path / "b.codes")
    one.add(some(1))
    one.save(file)
    assert len(Index.open(file)) == 111, "who wrote last may write again"
    file.unlink()
    with pytest.raises(BadRequest, match="changed by another process"):
        one.save(file)


def of_many_who_add_at_once_every_one_is_stored_or_told(codec: Codec, folder: Path) -> None:
    """Each repeats what it is refused, as its sentence says."""
    file, one = folder / "a.codes", codec.encode(some(1))
    Index.build(codec, some(100)).save(file)

    def work(first: int) -> None:
        done = 0
        while done < 5:
            index = Index.open(file)
            index.add(one, torch.tensor([first + done]))
            with suppress(BadRequest):
                index.save(file)
                done += 1

    children = [forked(partial(work, 1000 + 5 * i)) for i in range(4)]
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert set(range(1000, 1020)) <= set(Index.open(file).names.tolist()) and len(Index.open(file)) == 120


def a_process_that_has_coded_and_searched_may_be_forked(codec: Codec, folder: Path) -> None:
    index, q = Index.build(codec, some(2000)), some(3)
    wanted = index.search(q, 5).ids

    def work() -> None:
        index.add(some(600))
        index.remove(torch.arange(2000, 2600))
        assert torch.equal(index.search(q, 5).ids, wanted)

    assert os.waitpid(forked(work), 0)[1] == 0


ALONE = (
    a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one,
    of_many_who_add_at_once_every_one_is_stored_or_told,
    a_process_that_has_coded_and_searched_may_be_forked,
)


@pytest.mark.parametrize("law", ALONE, ids=lambda law: law.__name__)
def test_processes(law: Callable[..., None], codec: Codec, tmp_path: Path):
    """In a process of its own: one that has run the loops of other tests may not be forked."""
    (tmp_path / "codec").mkdir()
    (tmp_path / "here").mkdir()
    Index.empty(codec).save(tmp_path / "codec" / "empty.codes")
    code = (
        "import sys, torch, index_faults as t; from pathlib import Path; torch.manual_seed(0); folder = Path(sys.argv[1])\n"
        f"t.{law.__name__}(t.Index.open(folder / 'codec' / 'empty.codes').codec, folder / 'here')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
