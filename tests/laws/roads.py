"""The road from a directory to a smaller directory: ledger = file, memory = disk, resumed = uninterrupted, refusals in words."""

import errno
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright import index, recipes
from bitwright.errors import BadRequest
from bitwright.export import resumable
from bitwright.job import Job, compress
from bitwright.ledger import ledger
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.cora import Cora
from bitwright.rounding.gptq import GPTQ


def files(out: Path) -> dict[str, Any]:
    return {n: t for shard in sorted(out.glob("*.safetensors")) for n, t in load_file(shard).items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def small(name: str) -> Recipe:
    make = index.load(index.RECIPES[name])
    few = {"steps": 2} if "steps" in inspect.signature(make).parameters else {}
    made: Recipe = make(**few, **({} if name == "ptq1-61" else {"group": 32}))  # whose factors are of whole rows and columns
    return made


@pytest.mark.parametrize("name", index.RECIPES)
def test_the_ledger_is_the_file_and_was_foretold(name: str, tiny_llama: Callable[..., Path], tokens: Any, tmp_path: Path) -> None:
    foretold = Job.of(tiny_llama(), small(name), tokens()).plan.bytes
    _, report = compress(tiny_llama(), small(name), tokens(), out=tmp_path / "out")
    written = sum(t.numel() * t.element_size() for t in files(tmp_path / "out").values())
    assert report.bytes == written == sum(e.bytes for e in ledger(tmp_path / "out"))
    searched = small(name).menu or any(isinstance(joint, Cora) for joint in small(name).joint)
    assert foretold == report.bytes or searched  # what is not chosen yet is foretold as the recipe has it, ranks as none
    by_site: dict[str, int] = {}
    for entry in ledger(tmp_path / "out"):
        if entry.site:
            by_site[entry.site] = by_site.get(entry.site, 0) + 8 * entry.bytes
    assert by_site == {row.name: row.bits for row in report.rows}


def test_columns_in_their_own_order_are_paid_for(tiny_llama: Callable[..., Path], tokens: Any, tmp_path: Path) -> None:
    recipe = replace(recipes.gptq(group=32), rounding=GPTQ("descending", "dynamic"))
    _, report = compress(tiny_llama(), recipe, tokens(), out=tmp_path / "out")
    _, plain = compress(tiny_llama(), recipes.gptq(group=32), tokens())
    assert all(a.bits == b.bits + 32 * a.shape[1] for a, b in zip(report.rows, plain.rows))


LOADER = """
import sys, torch, bitwright
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[3])
"""


@pytest.mark.parametrize("name", ["best", "quantease-outlier", "zeroquant-v2"])
def test_memory_disk_and_transformers_agree_bit_for_bit(name: str, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    ids = tokens().ids[:2]
    in_memory, _ = compress(tiny_llama(), small(name), tokens())
    on_disk, _ = compress(tiny_llama(), small(name), tokens(), out=tmp_path / "out")
    from transformers import AutoModelForCausalLM

    of_module, _ = compress(AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32), small(name), tokens())
    with torch.no_grad():
        logits = [m(ids).logits for m in (in_memory, on_disk, of_module)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    if name == "best":
        torch.save(ids, tmp_path / "ids.pt")
        command = [sys.executable, "-c", LOADER, str(tmp_path / "out"), str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits[0])


def test_casting_a_loaded_model_leaves_the_codes_alone(tiny_llama: Any, tokens: Any) -> None:
    model, _ = compress(tiny_llama(), small("best"), tokens())
    before = {n: b.clone() for n, b in model.named_buffers() if ".terms." in n}
    model.to(torch.bfloat16)
    assert before and all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in before.items())
    assert model(tokens().ids[:1]).logits.dtype == torch.bfloat16


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("name", ["best", "rtn"])
@pytest.mark.parametrize("after", [1, 2])
def test_resumed_is_uninterrupted(name: str, after: int, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=3)

    def stop(what: str, done: int, total: int) -> None:
        if what == "compressing" and done == after:
            raise Stop

    with pytest.raises(Stop):
        compress(model, small(name), tokens(), out=tmp_path / "out", progress=stop)
    with pytest.raises(BadRequest, match="--resume"):
        compress(model, small(name), tokens(), out=tmp_path / "out")
    with pytest.raises(BadRequest, match="another model, recipe or data"):
        compress(model, recipes.best(bits=2, group=32), tokens(), out=tmp_path / "out", resume=True)
    began: list[int] = []
    _, resumed = compress(
        model, small(name), tokens(), out=tmp_path / "out", resume=True,
        progress=lambda what, done, total: began.append(done) if what == "compressing" else None,
    )  # fmt: skip
    assert began[0] == after
    _, whole = compress(model, small(name), tokens(), out=tmp_path / "whole")
    assert same(files(tmp_path / "out"), files(tmp_path / "whole"))
    assert [replace(r, seconds=0.0) for r in resumed.rows] == [replace(r, seconds=0.0) for r in whole.rows]
    assert not (tmp_path / "out" / resumable.WORK).exists()


def test_a_full_disk_keeps_what_is_finished(tiny_llama: Any, tokens: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model, real, count = tiny_llama(num_hidden_layers=3), resumable.save_file, [0]

    def full(tensors: Any, path: Path, **more: Any) -> None:
        count[0] += path.name.startswith("model-")
        if count[0] == 3:
            path.write_bytes(b"half a shard")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "save_file", full)
        with pytest.raises(BadRequest, match=r"disk is full.*--resume"):
            compress(model, small("best"), tokens(), out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*"))) == 2 and not list((tmp_path / "out").rglob("*.partial"))
    compress(model, small("best"), tokens(), out=tmp_path / "out", resume=True)
    compress(model, small("best"), tokens(), out=tmp_path / "whole")
    assert same(files(tmp_path / "out"), files(tmp_path / "whole"))


def test_the_statistics_store_replaces_the_data(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    first, _ = compress(tiny_llama(), small("gptq"), tokens(), stats=tmp_path / "stats")
    kept = {p: p.read_bytes() for p in (tmp_path / "stats").rglob("*.safetensors")}
    again, report = compress(tiny_llama(), small("gptq"), tokens(), stats=tmp_path / "stats")
    other, _ = compress(tiny_llama(), small("best"), tokens(), stats=tmp_path / "stats")
    assert kept and {p: p.read_bytes() for p in (tmp_path / "stats").rglob("*.safetensors")} == kept
    assert same(dict(first.named_buffers()), dict(again.named_buffers()))
    assert not same(dict(first.named_buffers()), dict(other.named_buffers()))
    assert "store" in report.asked["inputs"]


def test_a_group_that_does_not_divide_is_told_or_refused(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=72)
    _, report = compress(model, small("best"), tokens(), out=tmp_path / "out")
    odd = [row for row in report.rows if "down_proj" in row.name]
    assert odd and all("24 instead" in row.notes[0] and "bits per weight" in row.notes[0] for row in odd)
    assert report.fallbacks
    with pytest.raises(BadRequest, match="without --strict"):
        compress(model, small("best"), tokens(), out=tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_can_be_compressed(tied: bool, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    recipe = replace(small("best"), head=True)
    on_disk, report = compress(model, recipe, tokens(), out=tmp_path / "out")
    in_memory, _ = compress(model, recipe, tokens())
    assert {r.name for r in report.rows if r.block is None} == {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    with torch.no_grad():
        assert torch.equal(on_disk(tokens().ids).logits, in_memory(tokens().ids).logits)
    assert report.kept < compress(model, small("best"), tokens())[1].kept
    assert len(on_disk.generate(tokens().ids[:1, :4], max_new_tokens=3, do_sample=False)[0]) > 4


def test_rules_leave_layers_alone_or_give_them_other_parts(tiny_llama: Any, tokens: Any) -> None:
    rules = (Rule("re:.*k_proj", ignore=True), Rule("mlp.down_proj", grid=recipes.rtn(8).grid))
    _, report = compress(tiny_llama(), replace(small("best"), rules=rules), tokens())
    assert not any("k_proj" in row.name for row in report.rows)
    assert all((row.bpw > 8) == ("down_proj" in row.name) for row in report.rows)


# --- refusals ------------------------------------------------------------------------------------------------------------------


def damaged(kind: str, good: Path, at: Path) -> Path:
    at.mkdir()
    for path in good.iterdir():
        (at / path.name).write_bytes(path.read_bytes())
    weights = at / "model.safetensors"
    if kind == "missing":
        return at / "nothing"
    if kind == "a file":
        return weights
    if kind == "no config":
        (at / "config.json").unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "corrupt header":
        weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])
    elif kind == "missing shard":
        (at / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    elif kind == "quantized":
        config = json.loads((at / "config.json").read_text())
        (at / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    else:
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float(kind)
        save_file(tensors, weights, metadata={"format": "pt"})
    return at


KINDS = ["missing", "a file", "no config", "no weights", "truncated", "corrupt header", "missing shard", "quantized", "nan", "inf"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_model_is_refused_in_one_sentence_and_nothing_is_written(
    kind: str, tiny_llama: Any, tokens: Any, tmp_path: Path
) -> None:
    model = damaged(kind, tiny_llama(), tmp_path / "bad")
    with pytest.raises(BadRequest) as refusal:
        compress(model, small("best"), tokens(), out=tmp_path / "out")
    words = str(refusal.value)
    assert "\n" not in words.strip() and words.endswith(".") and len(words) < 400
    assert any(remedy in words for remedy in ("give", "download", "repair", "convert", "safetensors only"))
    assert not (tmp_path / "out").exists()


def test_requests_that_cannot_be_met_are_refused(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    alien = replace(tokens(), ids=tokens().ids + 96)
    cases = [
        (lambda: compress(tiny_llama(), small("best"), None, out=tmp_path / "out"), "calibration data"),
        (lambda: compress(tiny_llama(), small("best"), alien, out=tmp_path / "out"), "vocabulary"),
        (lambda: compress(tiny_llama(), replace(small("best"), transforms=("x",)), tokens()), "transforms"),
        (lambda: compress(tiny_llama(), replace(small("best"), budget=0.5), tokens()), "budget"),
        (
            lambda: compress(tiny_llama(), replace(small("best"), rules=(Rule("re:.*", ignore=True),)), tokens()),
            "nothing to compress",
        ),
        (lambda: compress(tiny_llama(), small("best"), tokens(), out=tmp_path / "out", device="meta-physical"), "device"),
        (lambda: bitwright.load(tmp_path / "nowhere"), "There is no model"),
    ]
    for request, words in cases:
        with pytest.raises(BadRequest, match=words):
            request()
    assert not (tmp_path / "out").exists()


def test_a_budget_is_met_from_below_by_any_number_of_levels(tiny_llama: Any, tokens: Any) -> None:
    model = tiny_llama(hidden_size=128, intermediate_size=256)
    _, report = compress(model, replace(recipes.rtn(group=64), budget=3.7), None)
    levels = report.asked["recipe"]["grid"]["levels"]
    assert report.bpw_linears <= 3.7 and levels & (levels - 1)
    _, more = compress(model, replace(recipes.rtn(group=64), grid=replace(recipes.rtn().grid, levels=levels + 1)), None)
    assert more.bpw_linears > 3.7


def test_a_block_without_anything_to_compress_is_passed_through(tiny_llama, tokens, tmp_path):
    """The next block is calibrated on its outputs: where the first is left as it is, on those of the float model."""
    rules = (Rule(r"re:model\.layers\.0\..*", ignore=True),)
    recipe = replace(recipes.gptq(group=32), rules=rules)
    streamed, _ = bitwright.compress(tiny_llama(), recipe, tokens())
    stored, _ = bitwright.compress(tiny_llama(), recipe, tokens(), stats=tmp_path)
    first = "model.layers.1.self_attn.q_proj"
    assert torch.equal(streamed.get_submodule(first).decoded()[0].codes, stored.get_submodule(first).decoded()[0].codes)
