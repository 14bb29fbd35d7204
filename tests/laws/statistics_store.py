"""The statistics store: moments of the float model, the same whatever recipe filled it, and enough to work without data."""

import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright import recipes
from bitwright.calibrate import store
from bitwright.calibrate.store import Store
from bitwright.errors import BadRequest
from bitwright.job import compress
from bitwright.recipe import Recipe, Rule


def gptq(**changes: Any) -> Recipe:
    return replace(recipes.gptq(group=32), **changes)


def kept(stats: Path) -> dict[str, bytes]:
    return {str(p.relative_to(stats)): p.read_bytes() for p in stats.rglob("*") if p.is_file()}


def coded(model: Any) -> dict[str, torch.Tensor]:
    return {n: b for n, b in model.named_buffers() if ".terms." in n}


def same(a: Any, b: Any) -> bool:
    one, other = coded(a), coded(b)
    return set(one) == set(other) and all(torch.equal(one[n], other[n]) for n in one)


HALF = (Rule("re:.*q_proj", ignore=True),)
OTHERS = {"another method": recipes.best(bits=3, group=32), "with the head": gptq(head=True)}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_stored_does_not_depend_on_the_recipe(
    other: str, tiny_llama: Callable[..., Path], tokens: Any, tmp_path: Path
) -> None:
    compress(tiny_llama(), gptq(), tokens(), stats=tmp_path / "a")
    compress(tiny_llama(), OTHERS[other], tokens(), stats=tmp_path / "b")
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


@pytest.mark.parametrize("first, second", [((), HALF), (HALF, ())], ids=["then fewer layers", "then more layers"])
def test_recipes_for_other_layers_share_a_store(first: Any, second: Any, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    compress(tiny_llama(), gptq(rules=first), tokens(), stats=tmp_path / "shared")
    shared, report = compress(tiny_llama(), gptq(rules=second), tokens(), stats=tmp_path / "shared")
    alone, wanted = compress(tiny_llama(), gptq(rules=second), tokens(), stats=tmp_path / "alone")
    assert {r.name for r in report.rows} == {r.name for r in wanted.rows}
    assert same(shared, alone)


@pytest.mark.parametrize("head", [False, True], ids=["blocks", "with the head"])
def test_a_full_store_gives_the_same_codes_again(head: bool, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    first, _ = compress(tiny_llama(), gptq(head=head), tokens(), stats=tmp_path / "stats")
    again, _ = compress(tiny_llama(), gptq(head=head), tokens(), stats=tmp_path / "stats")
    assert same(first, again)


def test_a_full_store_needs_no_data(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    first, _ = compress(tiny_llama(), gptq(), tokens(), stats=tmp_path / "stats")
    again, _ = compress(tiny_llama(), gptq(), None, stats=tmp_path / "stats")
    assert same(first, again)


def test_another_model_or_other_data_is_another_store(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    for model, data in ((tiny_llama(), tokens()), (tiny_llama(), tokens(seed=1)), (tiny_llama(num_hidden_layers=1), tokens())):
        shared, _ = compress(model, gptq(), data, stats=tmp_path / "shared")
        alone, _ = compress(model, gptq(), data, stats=tmp_path / f"{model.name}-{data.seed}")
        assert same(shared, alone)


def test_processes_may_fill_one_store_at_once(tmp_path: Path) -> None:
    """Two write the same names over and over; a third reads: every file is whole whenever it is there, and nothing is left over."""
    root = tmp_path / "shared"
    found = Store(root, "m", "d")
    code = (
        "import sys, torch; from pathlib import Path; from bitwright.calibrate.store import Store\n"
        "s = Store(Path(sys.argv[1]), 'm', 'd')\n"
        "for i in range(300): s.put_site('w', {'x': torch.full((4096,), float(i))})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(root)]) for _ in range(2)]
    while any(w.poll() is None for w in writers):
        values = found.site("w")
        assert not values or len(values["x"].unique()) == 1
    assert [w.returncode for w in writers] == [0, 0]
    assert [p.name for p in (found.folder / "sites").iterdir()] == ["w.safetensors"]


def test_an_interrupted_store_is_filled_later(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "collecting statistics" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama(), gptq(), tokens(), stats=tmp_path / "stats", progress=stop)
    with pytest.raises(BadRequest, match="data"):
        compress(tiny_llama(), gptq(), None, stats=tmp_path / "stats")
    compress(tiny_llama(), gptq(), tokens(), stats=tmp_path / "stats")
    compress(tiny_llama(), gptq(), tokens(), stats=tmp_path / "whole")
    assert kept(tmp_path / "stats") == kept(tmp_path / "whole")


def test_a_full_disk_is_told_here_too(tiny_llama: Any, tokens: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(BadRequest, match="disk is full"):
        compress(tiny_llama(), gptq(), tokens(), stats=tmp_path / "stats")
