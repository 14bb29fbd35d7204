"""Interruptions: whatever write fails, one sentence says so and --resume ends where an uninterrupted run would have ended."""

import errno
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bitwright import recipes
from bitwright.corrections.bias import Biases
from bitwright.corrections.norm_stats import NormStatistics
from bitwright.errors import BadRequest
from bitwright.export import resumable
from bitwright.job import compress
from bitwright.road import Road
from bitwright.rounding.straight_through import StraightThrough
from bitwright.training.loop import Training
from bitwright.training.scopes import Model


def files(out: Path) -> dict[str, torch.Tensor]:
    return {n: t for shard in sorted(out.glob("*.safetensors")) for n, t in load_file(shard).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def full_at(number: int, real: Any, count: list[int]) -> Any:
    """`save_file` that finds the disk full at its `number`-th call."""

    def save(tensors: Any, path: Path, **more: Any) -> None:
        count[0] += 1
        if count[0] == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **more)

    return save


@pytest.mark.parametrize("name", ["gptq", "rtn"])
def test_a_disk_that_is_full_at_any_write_is_told_and_resumed(
    name: str, tiny_llama: Any, tokens: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    recipe, count = getattr(recipes, name)(group=32), [0]
    monkeypatch.setattr(resumable, "save_file", full_at(0, resumable.save_file, count))
    compress(tiny_llama(), recipe, tokens(), out=tmp_path / "whole")
    monkeypatch.undo()
    writes = count[0]  # shards, and between them the rows as they stand
    assert writes >= 3
    for number in range(1, writes + 1):
        out = tmp_path / str(number)
        monkeypatch.setattr(resumable, "save_file", full_at(number, resumable.save_file, [0]))
        with pytest.raises(BadRequest, match=r"disk is full.*--resume"):
            compress(tiny_llama(), recipe, tokens(), out=out)
        monkeypatch.undo()
        assert not list(out.rglob("*.partial"))
        compress(tiny_llama(), recipe, tokens(), out=out, resume=True)
        assert same(files(out), files(tmp_path / "whole"))


def test_steps_over_the_whole_model_are_repeated_from_where_the_road_ended(
    tiny_resnet: Path, pictures: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Roundings of the whole model, then finishes: each rewrites shards, none may begin with what it wrote itself."""
    how, count = Training(steps=4, keep="last"), [0]
    recipe = replace(recipes.rtn(3, group=None), rounding=StraightThrough(0.1, 0.1, scope=Model(), training=how))
    recipe = replace(recipe, after=(NormStatistics(), Biases(0.01, how)))
    monkeypatch.setattr(resumable, "save_file", full_at(0, resumable.save_file, count))
    _, report = compress(tiny_resnet, recipe, pictures(), out=tmp_path / "whole", batch=8)
    monkeypatch.undo()
    assert len(report.notes) == 2 and not any("dropped" in note for note in report.notes)
    for number in range(1, count[0] + 1):
        out = tmp_path / str(number)
        monkeypatch.setattr(resumable, "save_file", full_at(number, resumable.save_file, [0]))
        with pytest.raises(BadRequest, match=r"disk is full.*--resume"):
            compress(tiny_resnet, recipe, pictures(), out=out, batch=8)
        monkeypatch.undo()
        compress(tiny_resnet, recipe, pictures(), out=out, batch=8, resume=True)
        assert same(files(out), files(tmp_path / "whole")), number


def test_a_disk_that_is_full_at_the_very_end_is_resumed(tiny_llama: Any, tokens: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = recipes.rtn(group=32)
    monkeypatch.setattr(shutil, "copy", full)
    with pytest.raises(BadRequest, match=r"disk is full.*--resume"):
        compress(tiny_llama(), recipe, None, out=tmp_path / "out")
    monkeypatch.undo()
    compress(tiny_llama(), recipe, None, out=tmp_path / "out", resume=True)
    compress(tiny_llama(), recipe, None, out=tmp_path / "whole")
    assert same(files(tmp_path / "out"), files(tmp_path / "whole"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_how_rows_are_batched_hardly_matters(tiny_llama: Any, tokens: Any) -> None:
    """Sums of other shapes round differently: a code in a thousand may fall on the other side, the error does not care."""
    found = {}
    for batch in (1, 4, 6):
        model, report = compress(tiny_llama(), recipes.gptq(group=32), tokens(), batch=batch)
        found[batch] = {n: b for n, b in model.named_buffers() if n.endswith("codes")}, sum(r.error for r in report.rows)
    codes, error = found[1]
    for others, loss in (found[4], found[6]):
        apart = sum(int((codes[n] != others[n]).sum()) for n in codes) / sum(c.numel() for c in codes.values())
        assert apart < 0.005 and loss == pytest.approx(error, rel=5e-3)


@pytest.mark.parametrize("written", [True, False])
def test_a_device_that_is_full_gets_smaller_batches(
    written: bool, tiny_llama: Any, tokens: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Halved until they fit, from the last finished block on; the result is that of the smaller batches up to rounding of sums."""
    recipe, real, seen = recipes.gptq(group=32), Road.block, []

    def crowded(road: Road, block: Any, i: int, stream: Any) -> None:
        seen.append((i, len(stream[0].hidden)))
        if i > 0 and len(stream[0].hidden) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        real(road, block, i, stream)

    monkeypatch.setattr(Road, "block", crowded)
    out = tmp_path / "out" if written else None
    with pytest.warns(UserWarning, match="batches of 2 rows"):
        _, report = compress(tiny_llama(), recipe, tokens(), out=out, batch=4)
    assert seen[:2] == [(0, 4), (1, 4)] and seen[2] == ((1, 2) if written else (0, 2))
    monkeypatch.setattr(Road, "block", real)
    _, wanted = compress(tiny_llama(), recipe, tokens(), batch=2)
    assert [(r.name, pytest.approx(r.error, rel=1e-3)) for r in report.rows] == [(r.name, r.error) for r in wanted.rows]


def test_a_device_too_small_for_one_row_says_what_is_missing(tiny_llama: Any, tokens: Any, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB. GPU 0 has 4 MiB free")

    monkeypatch.setattr(Road, "block", full)
    with pytest.raises(BadRequest, match=r"One row at a time.*Tried to allocate 20 MiB.*--length"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compress(tiny_llama(), recipes.gptq(group=32), tokens(), batch=2)
