"""The index, and the small protocols: statistics, corrections, allocations, recipes."""

import builtins
import dataclasses
import dis
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch

from bitwright import index, recipes
from bitwright.calibrate.stats import Cross, Gram, Known
from bitwright.corrections.lorc import Lorc
from bitwright.corrections.outliers import Outliers
from bitwright.errors import BadRequest
from bitwright.linalg import objective
from bitwright.recipe import Recipe, Rule
from bitwright.terms.base import decode, stored_bits

ROOT = Path(__file__).parents[2]
ALL = [(room, name) for room, named in index.PARTS.items() for name in named]


def test_names_are_unique_over_all_rooms() -> None:
    names = [name for _, name in ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("room, name", ALL)
def test_every_part_resolves_to_a_documented_dataclass(room: str, name: str) -> None:
    kind = index.resolve(room, name)
    assert dataclasses.is_dataclass(kind) and kind.__doc__ and index.name_of(kind) == name
    assert room in ("stats", "terms") or kind.__dataclass_params__.frozen


def test_unknown_names_and_fields_are_refused_in_words() -> None:
    for value, words in (({"use": "magic"}, "magic"), ({"use": "integer", "colour": 3}, "colour"), ({"levels": 3}, "None")):
        with pytest.raises(BadRequest, match=words):
            index.from_dict(value)
    with pytest.raises(BadRequest, match="choose one of"):
        index.resolve("grids", "magic")


def test_every_recipe_names_its_card(recipe: Recipe) -> None:
    module = __import__(index.RECIPES[recipe.name].split(":")[0], fromlist=["_"])
    assert "ard" in (module.__doc__ or "")


def test_a_recipe_survives_every_way_of_writing_it(recipe: Recipe, tmp_path: Path) -> None:
    ruled = dataclasses.replace(recipe, rules=(Rule("re:.*x", ignore=True), Rule("mlp", grid=recipes.rtn(8).grid)), budget=3.5)
    for value in (recipe, ruled):
        assert Recipe.from_dict(value.to_dict()) == value
        (tmp_path / "r.toml").write_text(value.to_toml())
        assert Recipe.read(tmp_path / "r.toml") == value
    (tmp_path / "r.toml").write_text("grid = [")
    with pytest.raises(BadRequest, match="cannot be read"):
        Recipe.read(tmp_path / "r.toml")


def test_files_are_rooms_and_devices_stay_in_theirs() -> None:
    for path in sorted((ROOT / "bitwright").rglob("*.py")):
        text, where = path.read_text(), path.relative_to(ROOT / "bitwright").parts
        limit = 150 if where[0] in ("grids", "rounding", "corrections", "allocation", "recipes") else 300
        assert len(text.splitlines()) <= limit, f"{path} is a room that needs a wall"
        assert where[0] in ("kernels", "zoo", "evaluation") or ("torch.cuda" not in text and ".cuda(" not in text), path
        assert "pickle" not in text, path


# --- statistics ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Gram, Cross])
def test_shards_merge_to_the_whole(kind: Any) -> None:
    x, teacher = torch.randn(60, 8), torch.randn(60, 8)
    whole, parts = kind(8), [kind(8) for _ in range(4)]  # the last stays empty
    whole.add(x, teacher)
    for part, rows in zip(parts, (slice(0, 7), slice(7, 20), slice(20, 60))):
        part.add(x[rows], teacher[rows])
    merged = parts[3].merge(parts[2]).merge(parts[0].merge(parts[1]))
    assert merged.tokens == whole.tokens == 60
    assert torch.allclose(merged.value(), whole.value(), atol=1e-6)
    wanted = (x if kind is Gram else teacher).T @ x / 60
    assert torch.allclose(whole.value(), wanted, atol=1e-6)


def test_what_was_not_collected_is_not_known() -> None:
    with pytest.raises(KeyError, match="cross"):
        Known({})["cross"]
    with pytest.raises(ValueError, match="two lanes"):
        Cross(3).add(torch.randn(4, 3))


# --- corrections ---------------------------------------------------------------------------------------------------------------


def test_corrections_cost_what_was_foretold_and_never_hurt(correction: Any, problem: Any) -> None:
    W, H = problem(24, 32)
    E = W - (W * 8).round() / 8
    terms = correction(E, Known({"gram": H}))
    assert stored_bits(terms) == stored_bits(correction.metas((24, 32)))
    left = E - decode(terms) if terms else E
    measure = (lambda M: objective(M, H)) if "gram" in correction.needs else (lambda M: float(M.square().sum()))
    assert measure(left) <= measure(E) * (1 + 1e-4)


def test_whitened_lorc_beats_plain_on_the_output(problem: Any) -> None:
    for seed in range(6):
        W, H = problem(24, 32, seed)
        left = [objective(W - decode(Lorc(4, whiten)(W, Known({"gram": H}))), H) for whiten in (True, False)]
        assert left[0] <= left[1] * 1.001


def test_no_outliers_and_no_rank_are_no_terms() -> None:
    E = torch.randn(4, 6)
    assert Outliers(0.0)(E, Known()) == () == Outliers(0.0).metas((4, 6))
    assert Lorc(0, whiten=False)(E, Known()) == () == Lorc(0).metas((4, 6))


def test_every_global_name_that_code_uses_is_there():
    """Shapes in annotations look like undefined names to a linter, which therefore does not look; here the byte code is asked."""
    for path in sorted((ROOT / "bitwright").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        codes, known = [compile(path.read_text(), str(path), "exec")], vars(import_module(module)).keys() | vars(builtins).keys()
        while codes:
            code = codes.pop()
            codes += [const for const in code.co_consts if isinstance(const, CodeType)]
            used = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
            assert used <= known, f"{path} uses {sorted(used - known)}"
