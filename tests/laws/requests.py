"""Requests: what cannot be done is refused in words before anything is read, written or deleted."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright import index, recipes
from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.job import Job, compress
from bitwright.layout import Layout
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.gptq import GPTQ


def rtn(**changes: Any) -> Recipe:
    return replace(recipes.rtn(group=32, mse=False), **changes)


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def copied(source: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for path in source.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def rewritten(source: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a model whose tensors were changed."""
    weights = copied(source, to) / "model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    return to


# --- nothing is deleted that was not ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [".", "..", "inside"])
def test_the_model_itself_is_never_overwritten(where: str, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = copied(tiny_llama(), tmp_path / "here" / "model")
    before, out = content(tmp_path), model / where
    if where == "inside":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        before = content(tmp_path)
    with pytest.raises(BadRequest):
        compress(model, rtn(), out=out, overwrite=True)
    assert content(tmp_path) == before


def test_overwriting_replaces_our_own_results_only(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(tiny_llama(), rtn(), out=out)
    compress(tiny_llama(), rtn(grid=Integer(4)), out=out, overwrite=True)
    assert json.loads((out / "bitwright.json").read_text())["recipe"]["grid"]["levels"] == 4
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(BadRequest):
        compress(tiny_llama(), rtn(), out=mine, overwrite=True)
    assert (mine / "thesis.txt").is_file()


def test_a_refused_request_leaves_the_earlier_result(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    compress(tiny_llama(), rtn(), out=tmp_path / "out")
    before = content(tmp_path / "out")
    bad = rewritten(tiny_llama(), tmp_path / "bad", lambda t: t["model.norm.weight"].fill_(torch.nan))
    for model, recipe in ((bad, rtn()), (tiny_llama(), recipes.gptq(group=32))):
        with pytest.raises(BadRequest):
            compress(model, recipe, None, out=tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == before


# --- models that are not whole ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"]
)
def test_a_model_that_lacks_a_tensor_is_refused(name: str, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = rewritten(tiny_llama(), tmp_path / "bad", lambda t: t.pop(name))
    with pytest.raises(BadRequest, match=name.replace(".", r"\.")):
        compress(model, rtn(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_of_another_shape_than_config_says_is_refused(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(7)

    with pytest.raises(BadRequest, match="norm"):
        compress(rewritten(tiny_llama(), tmp_path / "bad", change), rtn(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_type_of_tensor_that_is_not_known_is_refused(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = rewritten(tiny_llama(), tmp_path / "bad", lambda t: t.update(extra=torch.zeros(4, dtype=torch.uint16)))
    with pytest.raises(BadRequest, match="extra"):
        compress(model, rtn(), out=tmp_path / "out")


def test_a_tied_head_that_is_stored_all_the_same_does_not_matter(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    tied = tiny_llama(tie_word_embeddings=True)
    twice = rewritten(tied, tmp_path / "twice", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    ids = torch.arange(12)[None]
    for head in (False, True):
        found = [compress(m, rtn(head=head), out=tmp_path / f"{m.name}{head}")[0] for m in (tied, twice)]
        with torch.no_grad():
            assert torch.equal(*[m(ids).logits for m in found])


def test_what_is_compressed_already_is_refused_from_memory_too(tiny_llama: Callable[..., Path]) -> None:
    small, _ = compress(tiny_llama(), rtn())
    with pytest.raises(BadRequest, match="already"):
        compress(small, rtn())


def test_biases_are_kept(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    on_disk, _ = compress(model, rtn(), out=tmp_path / "out")
    in_memory, _ = compress(model, rtn())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(on_disk(ids).logits, in_memory(ids).logits)
    original = load_file(model / "model.safetensors")
    biases = [n for n in original if n.endswith("bias")]
    assert biases and all(torch.equal(on_disk.state_dict()[n], original[n]) for n in biases)


# --- recipes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, path in index.RECIPES.items() if "bits" in index.load(path).__annotations__])
@pytest.mark.parametrize("bits", [0, 17])
def test_numbers_of_bits_without_a_code_are_refused(name: str, bits: int, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"levels|bits"):
        compress(tiny_llama(), index.load(index.RECIPES[name])(bits=bits, group=32), tokens(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


WHOLE = [Layout(None, None), Layout(None, 1), Layout(1, None), Layout(4, 8)]


@pytest.mark.parametrize("layout", WHOLE, ids=str)
def test_whole_axes_survive_the_recipe_file(layout: Layout, tmp_path: Path) -> None:
    for recipe in (rtn(layout=layout), rtn(rules=(Rule("x", layout=layout),))):
        (tmp_path / "r.toml").write_text(recipe.to_toml())
        (tmp_path / "r.json").write_text(json.dumps(recipe.to_dict()))
        assert Recipe.read(tmp_path / "r.json") == recipe
        assert Recipe.read(tmp_path / "r.toml") == recipe


def test_recipe_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9\xff'")
    (tmp_path / "list.json").write_text("[1, 2]")
    for path in (tmp_path / "nothing.toml", tmp_path / "latin.toml", tmp_path / "list.json", tmp_path):
        with pytest.raises(BadRequest):
            Recipe.read(path)


WRONG = {
    'grid = "integer"': "kind grid",
    'grid = { use = "gptq" }': "kind grid",
    'grid = { use = "integer", levels = "four" }': "whole number",
    'grid = { use = "integer", levels = true }': "whole number",
    'grid = { use = "integer", levels = 1 }': "levels",
    'grid = { use = "table", table = "nf5" }': "nf4",
    'layout = { use = "layout", cols = -8 }': "-8",
    'rounding = { use = "gptq", order = "up" }': "'descending', 'natural'",
    'rounding = { use = "chain" }': "lacks the field 'steps'",
    'corrections = { use = "lorc" }': "a list",
    'rules = [{ use = "rule" }]': "lacks the field 'match'",
    'budget = "small"': "a number",
    'head = "no"': "true or false",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_in_a_recipe_file_is_told(line: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(line)
    with pytest.raises(BadRequest) as told:
        Recipe.read(tmp_path / "r.toml")
    assert WRONG[line] in str(told.value) and str(told.value).endswith(".")


RULES = {
    "matches nothing": ({"match": "no_such_layer", "ignore": True}, "no_such_layer"),
    "is no expression": ({"match": "re:[", "ignore": True}, r"\["),
    "names the head, which is not compressed": ({"match": "lm_head", "grid": Integer(256)}, "lm_head"),
}


@pytest.mark.parametrize("case", RULES)
def test_a_rule_that_does_nothing_is_refused(case: str, tiny_llama: Callable[..., Path]) -> None:
    rule, words = RULES[case]
    with pytest.raises(BadRequest, match=words):
        Job.of(tiny_llama(), rtn(rules=(Rule(**rule),)), None)


def test_ignoring_a_head_that_is_left_alone_anyway_is_no_mistake(tiny_llama: Callable[..., Path]) -> None:
    assert Job.of(tiny_llama(), rtn(rules=(Rule("lm_head", ignore=True),)), None).plan.sites


@pytest.mark.parametrize("tied", [True, False])
def test_a_rule_for_everything_leaves_the_embedding_to_nearest(tied: bool, tiny_llama: Any, tokens: Any) -> None:
    """An embedding's rows meet no data but their own: a rule that asks for GPTQ everywhere must not ask for it there."""
    rules = (Rule("re:.*", rounding=GPTQ()),)
    _, report = compress(tiny_llama(tie_word_embeddings=tied), rtn(rules=rules, head=True), tokens())
    assert any(r.name == "model.embed_tokens" for r in report.rows)


def test_a_note_on_shared_moments_stands_at_every_reader(tiny_llama: Any, tokens: Any) -> None:
    """q, k and v share one factorisation; that its damping had to be raised is said for each of them."""
    recipe = rtn(rounding=GPTQ(damp=0.0))
    _, report = compress(tiny_llama(), recipe, tokens(rows=1, length=8))
    told = {r.name for r in report.rows if any("damping raised" in note for note in r.notes)}
    assert told == {r.name for r in report.rows}


# --- budgets ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("budget", [2.6, 4.5])
def test_a_budget_is_met_by_all_that_is_compressed(budget: float, head: bool, tiny_llama: Callable[..., Path]) -> None:
    recipe = rtn(budget=budget, head=head, layout=Layout(1, 16))
    plan = Job.of(tiny_llama(hidden_size=48, vocab_size=97, num_hidden_layers=1), recipe, None).plan
    weights = sum(p.shape[0] * p.shape[1] for p in plan.sites.values())
    assert sum(p.bits for p in plan.sites.values()) <= budget * weights


@pytest.mark.parametrize("head", [False, True])
def test_a_size_is_met(head: bool, tiny_llama: Callable[..., Path]) -> None:
    model = tiny_llama(hidden_size=48, vocab_size=97, num_hidden_layers=1)
    plan = Job.of(model, rtn(head=head, layout=Layout(1, 16)), None).plan
    least = sum(plan.kept.values())
    for size in (least + (plan.bytes - least) * share // 4 for share in (3, 5)):
        assert Job.of(model, plan.within(size), None).plan.bytes <= size
    with pytest.raises(BadRequest, match="too few"):
        plan.within(least)


def test_the_note_on_a_smaller_group_names_its_price(tiny_llama: Callable[..., Path]) -> None:
    model = tiny_llama(intermediate_size=72)
    for recipe in (rtn(), recipes.quantease_outlier(group=32)):
        plan = Job.of(model, recipe, None).plan
        odd = next(p for n, p in plan.sites.items() if "down_proj" in n)  # 24 columns a group for 32
        even = next(p for n, p in plan.sites.items() if "o_proj" in n)
        assert odd.note is not None
        told = float(odd.note.rsplit(", ", 1)[1].split(" ")[0])
        weights = [p.shape[0] * p.shape[1] for p in (odd, even)]
        assert told == pytest.approx(odd.bits / weights[0] - even.bits / weights[1], abs=0.1)


def test_frozen_values_stay_what_they_are() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rtn().head = True  # type: ignore[misc]
