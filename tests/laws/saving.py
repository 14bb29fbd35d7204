"""Who may read what is written: a file of ours has the rights of any other new file."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bitwright.convert import convert
from bitwright.job import compress
from bitwright.recipes import gptq
from bitwright.saving import save_file


@pytest.fixture(params=[0o022, 0o007, 0o077], ids=oct)
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """Of a file that is simply opened."""
    before = os.umask(request.param)
    (tmp_path / "plain").write_bytes(b"")
    yield (tmp_path / "plain").stat().st_mode
    os.umask(before)


def test_a_file_of_tensors_is_like_any_other(mode: int, tmp_path: Path) -> None:
    path, x = tmp_path / "x.safetensors", torch.arange(5)
    for value in (x, x + 1):
        save_file({"x": value}, path, {"format": "pt"})
        assert path.stat().st_mode == mode and torch.equal(load_file(path)["x"], value)
    path.chmod(0o640)
    save_file({"x": x}, path)
    assert path.stat().st_mode & 0o777 == 0o640  # what somebody has decided stays


def test_all_of_a_model_and_of_its_statistics_can_be_read(mode: int, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_llama(), tmp_path / "source", copy_function=shutil.copyfile)  # what is copied on has its rights
    compress(source, gptq(bits=4, group=32), tokens(), out=tmp_path / "native", stats=tmp_path / "stats")
    convert(tmp_path / "native", "compressed-tensors", tmp_path / "converted")
    for part, kinds in (
        ("native", {".safetensors", ".json"}),
        ("converted", {".safetensors", ".json"}),
        ("stats", {".safetensors"}),
    ):
        written = [path for path in (tmp_path / part).rglob("*") if path.is_file()]
        assert kinds <= {path.suffix for path in written}
        assert {path.stat().st_mode for path in written} == {mode}
