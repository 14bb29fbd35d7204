"""Card bitstack: one artefact at any size, what a prefix is, and what forty sizes of zoo:lm are worth."""

import json
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes, zoo
from bitwright.allocation.stack import Stack
from bitwright.errors import BadRequest
from bitwright.evaluation import Baseline, evaluate
from bitwright.export import hf
from bitwright.export.base import open_compressed
from bitwright.export.native import open_sized
from bitwright.report import Report
from bitwright.stacks import reorder
from bitwright.terms.base import stored_bits


@pytest.fixture(scope="module")
def stacked(tiny_llama: Any, tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stacks")
    bitwright.compress(tiny_llama(num_hidden_layers=1), recipes.bitstack(steps=4), tokens(), out=out / "stack", stats=out / "stats")
    return out / "stack"


def size_of(root: Path, size: int | str) -> int:
    return sum(entry.bytes for entry in open_sized(root, size).entries)


def stored(model: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_buffers() if ".terms." in name}


def same(one: Any, other: Any) -> bool:
    a, b = stored(one), stored(other)
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def test_every_size_is_met_from_below_and_by_less_than_a_term(stacked: Path) -> None:
    metas = open_compressed(stacked).model.metas
    term = max(stored_bits((meta,)) // 8 for found in metas.values() for meta in found)
    least, whole = size_of(stacked, least_size(stacked)), sum(e.bytes for e in open_compressed(stacked).entries)
    before: dict[str, int] = {}
    for size in torch.linspace(least, whole, 12).int().tolist():
        opened = open_sized(stacked, size)
        terms = {name: len(found) for name, found in opened.model.metas.items()}
        assert size - term <= size_of(stacked, size) <= size
        assert max(terms.values()) - min(terms.values()) <= 1 and all(terms[name] >= count for name, count in before.items())
        before = terms
    assert size_of(stacked, 10 * whole) == size_of(stacked, "1GB") == whole
    assert same(bitwright.load(stacked, size="1GB"), bitwright.load(stacked))


def least_size(root: Path) -> int:
    with pytest.raises(BadRequest, match="at least") as refusal:
        open_sized(root, 1)
    return int(str(refusal.value).split("at least ")[1].split(";")[0].replace(",", ""))


def test_sizes_that_cannot_be_had_are_refused_in_a_sentence(stacked: Path, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    least = least_size(stacked)
    bitwright.load(stacked, size=least)
    for size in (least - 1, 0, -5, "10B", "-3MB"):
        with pytest.raises(BadRequest, match=f"at least {least:,}"):
            bitwright.load(stacked, size=size)
    for size in ("many", "", "nan", "inf", "1e999MB", "9 apples"):
        with pytest.raises(BadRequest, match="is not a size"):
            bitwright.load(stacked, size=size)
    bitwright.compress(tiny_llama(num_hidden_layers=1), recipes.rtn(group=32), out=tmp_path / "rtn")
    for plain in (tmp_path / "rtn", tiny_llama(num_hidden_layers=1)):
        with pytest.raises(BadRequest, match="--recipe bitstack"):
            bitwright.load(plain, size="9MB")
        with pytest.raises(BadRequest, match=r"--recipe bitstack|not a compressed"):
            reorder(plain, tokens().ids)
    with pytest.raises(BadRequest, match="cut when it is loaded"):
        bitwright.compress(tiny_llama(num_hidden_layers=1), replace(recipes.bitstack(), budget=3.0), tokens())


def test_what_is_left_away_is_not_read(stacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], hf.Files.tensor
    monkeypatch.setattr(hf.Files, "tensor", lambda self, name: (read.append(name), real(self, name))[1])
    bitwright.load(stacked, size=least_size(stacked))
    assert read and len(read) == len(set(read))
    assert all(".terms.0." in name for name in read if ".terms." in name)


def test_a_prefix_is_what_building_that_size_gives(stacked: Path, tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    """Levels that are whole: the recipe with fewer steps on the same statistics. Sizes between: a directory of its own."""
    from bitwright.convert import convert

    ids, whole = tokens().ids[:2], open_compressed(stacked)
    model, stats = tiny_llama(num_hidden_layers=1), stacked.parent / "stats"
    for steps in (1, 3):
        direct, report = bitwright.compress(model, recipes.bitstack(steps=steps), None, stats=stats)
        prefix = bitwright.load(stacked, size=report.bytes)
        assert same(direct, prefix)
        with torch.no_grad():
            assert torch.equal(direct(ids).logits, prefix(ids).logits)
    between = least_size(stacked) + 1500
    convert(stacked, "native", tmp_path / "own", size=between)
    assert same(bitwright.load(tmp_path / "own"), bitwright.load(stacked, size=between))
    report, made = Report.read(tmp_path / "own"), open_compressed(tmp_path / "own")
    assert report.bytes == size_of(stacked, between) == sum(e.bytes for e in made.entries)
    assert all(row.error == row.prefixes[-1] and len(row.prefixes) == len(made.model.metas[row.name]) for row in report.rows)
    assert size_of(tmp_path / "own", least_size(stacked)) == least_size(stacked)  # and is a stack itself
    assert made.model.stack == whole.model.stack[: len(made.model.stack)]


def test_a_stack_of_one_term_each_has_one_size(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    bitwright.compress(tiny_llama(num_hidden_layers=1), recipes.bitstack(steps=1), tokens(), out=tmp_path / "one")
    with pytest.raises(BadRequest, match="one size only"):
        bitwright.load(tmp_path / "one", size="9MB")


def test_the_errors_of_prefixes_are_in_the_report(stacked: Path) -> None:
    for row in Report.read(stacked).rows:
        assert len(row.prefixes) == 4 and row.prefixes[-1] == pytest.approx(row.error, rel=1e-3)
        assert all(after < before for before, after in pairwise(row.prefixes))


def test_an_order_that_is_not_one_of_the_terms_is_damage(stacked: Path, tmp_path: Path) -> None:
    bad, config = tmp_path / "bad", json.loads((stacked / "config.json").read_text())
    shutil.copytree(stacked, bad)
    order = config["quantization_config"]["stack"]
    for wrong in (order[:-1], [*order[:-1], "m"], [order[0]] * len(order), [3], "stack", 7, [[]]):
        config["quantization_config"]["stack"] = wrong
        (bad / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadRequest, match="download"):
            bitwright.load(bad, size="1GB")


def test_without_data_errors_give_the_order_and_the_report_says_so(
    stacked: Path, tiny_llama: Any, tokens: Any, tmp_path: Path
) -> None:
    _, report = bitwright.compress(
        tiny_llama(num_hidden_layers=1), recipes.bitstack(steps=2), out=tmp_path / "a", stats=stacked.parent / "stats"
    )
    assert "ordered by the errors" in report.notes[0]
    by_errors = open_compressed(tmp_path / "a").model.stack
    for by in ("perplexity", "sensitivity", "errors"):
        reorder(tmp_path / "a", tokens().ids, Stack(by))
        found = open_compressed(tmp_path / "a").model.stack
        assert sorted(found) == sorted(by_errors) and (by != "errors" or found == by_errors)


# --- zoo:lm ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "stack"
    bitwright.compress("zoo:lm", recipes.bitstack(), bitwright.calibration("zoo:lm", samples=64), out=out)
    return out


@pytest.fixture(scope="module")
def judge() -> Baseline:
    from transformers import AutoTokenizer

    from bitwright.calibrate.text import text_windows

    text = text_windows("zoo:lm", "stdlib", 16, 512, "evaluation")
    return Baseline.of(bitwright.load(zoo.path("lm")), text, AutoTokenizer.from_pretrained(zoo.path("lm")))


@pytest.mark.acceptance
@pytest.mark.filterwarnings("ignore::bitwright.errors.Decoded")  # signs times a thin product have no kernel yet
def test_forty_sizes_from_one_artefact(zoo_stack: Path, judge: Baseline) -> None:
    """KL does not rise with the size by more than what cannot be measured: the noise floor, or half the interval's width."""
    least, whole = least_size(zoo_stack), sum(e.bytes for e in open_compressed(zoo_stack).entries)
    term = max(stored_bits((m,)) // 8 for found in open_compressed(zoo_stack).model.metas.values() for m in found)
    before, seconds = None, []
    for size in torch.linspace(least, whole, 40).int().tolist():
        begun = time.perf_counter()
        model = bitwright.load(zoo_stack, size=size)
        seconds.append(time.perf_counter() - begun)
        assert size - term <= size_of(zoo_stack, size) <= size
        kl = evaluate(model, judge).divergence.kl
        if before is not None:
            assert kl.value <= before.value + max(judge.floor.kl, (before.high - before.low) / 2)
        before = kl
    print(f"loads {min(seconds):.2f} to {max(seconds):.2f} s")
    assert max(seconds) < 2


@pytest.mark.acceptance
@pytest.mark.xfail(
    strict=True, reason="perplexity 55.8 against 117.0: 0.48 of it, as nearest rounding does not collapse on a small model"
)
@pytest.mark.filterwarnings("ignore::bitwright.errors.Decoded")  # signs times a thin product have no kernel yet
def test_at_two_bits_against_nearest_rounding(zoo_stack: Path, judge: Baseline) -> None:
    """The card asks for a tenth of the perplexity of RTN-2bit-g128 at about 2.3 bits."""
    nearest, report = bitwright.compress("zoo:lm", recipes.rtn(bits=2, group=128))
    weights = sum(row.weights for row in report.rows)
    loaded = bitwright.load(zoo_stack, size=report.kept + int(2.3 * weights / 8))
    found, peer = (evaluate(model, judge).perplexity.other.value for model in (loaded, nearest))
    assert 10 * found < peer, f"{found:.1f} against {peer:.1f}"
