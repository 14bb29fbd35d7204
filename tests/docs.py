"""The documents stay true: the map names every file, the README's code runs, its recipes exist."""

import re
from pathlib import Path

from bitwright import index

ROOT = Path(__file__).parents[1]


def test_map_names_every_file_once() -> None:
    named = re.findall(r"`(bitwright/[\w/]+\.\w+)`", (ROOT / "docs/map.md").read_text())
    named = [name for name in named if not name.endswith("__init__.py")]
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "bitwright").rglob("*.py")}
    said_elsewhere = {f for f in files if f.endswith("__init__.py")}
    assert len(named) == len(set(named))
    assert set(named) - files == set(), "the map names files that are not there"
    assert files - said_elsewhere - set(named) == set(), "the map lacks files"


def test_readme_names_every_recipe() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in index.RECIPES)


def test_readme_code_runs(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    calls = second.replace('calibration("zoo:lm")', 'calibration("zoo:lm", samples=4, length=64)')
    exec(compile(calls, "README", "exec"), {})
    exec(compile(first, "README", "exec"), {})
