"""The command line: exit codes, one sentence per refusal, nothing written where nothing could be done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright import console, zoo
from bitwright.cli import app

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    from rich.console import Console

    def command(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(console, "err", Console(stderr=True, soft_wrap=True, highlight=False))
        monkeypatch.setattr(console, "out", Console(soft_wrap=True, highlight=False))
        code = console.ends(lambda: app([str(a) for a in args]))
        return code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def small_reader(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one block that reads text with the tokenizer of zoo:lm."""
    root = tmp_path_factory.mktemp("reader") / "reader"
    shutil.copytree(tiny_llama(num_hidden_layers=1, vocab_size=4096, intermediate_size=128, max_position_embeddings=512), root)
    for part in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo.path("lm") / part, root)
    return root


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, said = result
    assert code == 2
    line = said.strip().splitlines()[-1]
    assert line.startswith("error:") and all(word in line for word in words), line


def test_missing_model_is_refused_in_one_sentence(run: Run, tmp_path: Path) -> None:
    refused(run("compress", tmp_path / "nothing", "-o", tmp_path / "out"), "There is no model", "hub id")
    assert not (tmp_path / "out").exists()


def test_unknown_recipe_and_option_name_what_there_is(run: Run, tmp_path: Path) -> None:
    refused(run("compress", "zoo:lm", "-o", tmp_path / "out", "--recipe", "magic"), "magic", "best")
    refused(run("compress", "zoo:lm", "-o", tmp_path / "out", "--set", "speed=11"), "speed", "bits")
    refused(run("compress", "zoo:lm", "-o", tmp_path / "out", "--device", "cuda:9000", "--recipe", "rtn"), "--device cpu")
    assert not (tmp_path / "out").exists()


def test_rule_that_matches_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("compress", "zoo:lm", "-o", tmp_path / "out", "--ignore", "re:.*typo"), "typo", "matches no layer")


def test_dry_run_writes_nothing_and_tells_the_bytes_of_the_run(run: Run, tmp_path: Path) -> None:
    common = ("compress", "zoo:lm", "-o", tmp_path / "out", "--recipe", "rtn", "--bits", "3", "--json")
    code, said, _ = run(*common, "--dry-run")
    assert code == 0 and not (tmp_path / "out").exists()
    foretold = json.loads(said)["bytes"]
    code, said, _ = run(*common)
    assert code == 0
    assert json.loads(said)["bytes"] == foretold
    code, said, _ = run("inspect", tmp_path / "out", "--json")
    assert sum(entry["bytes"] for entry in json.loads(said)) == foretold
    assert (tmp_path / "out" / "report.html").is_file()
    refused(run(*common), "not empty", "--overwrite")


def test_size_and_budget_are_met_from_below(run: Run, tmp_path: Path) -> None:
    code, said, _ = run("compress", "zoo:lm", "-o", tmp_path / "a", "--recipe", "rtn", "--size", "5MB", "--json")
    assert code == 0 and 4_800_000 < json.loads(said)["bytes"] <= 5_000_000
    code, said, _ = run("compress", "zoo:lm", "-o", tmp_path / "b", "--recipe", "rtn", "--budget", "3.5", "--json", "--dry-run")
    assert code == 0 and 3.3 < json.loads(said)["bpw_linears"] <= 3.5
    refused(run("compress", "zoo:lm", "-o", tmp_path / "c", "--recipe", "rtn", "--size", "1MB"), "too few")
    refused(run("compress", "zoo:lm", "-o", tmp_path / "c", "--recipe", "ptqtp", "--budget", "3"), "fixed number of levels")


def test_dials_that_contradict_each_other_are_refused(run: Run, tmp_path: Path) -> None:
    asked = ("compress", "zoo:lm", "-o", tmp_path / "d", "--recipe", "gptq")
    refused(run(*asked, "--kl", "0.05", "--budget", "3"), "takes the place")
    refused(run(*asked, "--allocation", "greedy"), "nothing to spend", "--budget")
    refused(run(*asked, "--budget", "3", "--allocation", "magic"), "choose one of")
    refused(run(*asked, "--budget", "0.7"), "reaches from", "bits")
    refused(run(*asked, "--kl", "0.05", "--samples", "8"), "--samples 32")
    assert not (tmp_path / "d").exists()


def test_interrupted_work_is_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.road import Road

    real = Road.block

    def stopped(self: Road, block: object, i: int, *rest: object) -> object:
        if i == 2:
            raise KeyboardInterrupt
        return real(self, block, i, *rest)  # type: ignore[arg-type]

    common = ("compress", "zoo:lm", "-o", tmp_path / "out", "--recipe", "rtn", "--bits", "3")
    with monkeypatch.context() as patch:
        patch.setattr(Road, "block", stopped)
        code, _, said = run(*common)
    assert code == 2 and "--resume" in said
    refused(run(*common), "--resume")
    assert run(*common, "--resume")[0] == 0
    assert run(*common[:3], tmp_path / "whole", *common[4:])[0] == 0
    for shard in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert shard.read_bytes() == (tmp_path / "out" / shard.name).read_bytes()


def test_list_names_every_room(run: Run) -> None:
    code, said, _ = run("list")
    assert code == 0 and "recipes" in said and "gptq" in said
    for room in ("recipes", "grids", "rounding"):
        assert run("list", room)[0] == 0
    refused(run("list", "kitchen"), "kitchen", "recipes")


def test_help_teaches(run: Run) -> None:
    code, said, _ = run("compress", "--help")
    assert code == 0 and all(flag in said for flag in ("--budget", "--resume", "--dry-run", "--strict"))


def test_speed_is_measured_beside_the_original(run: Run, tmp_path: Path) -> None:
    """The numbers of one run say nothing; that both models ran, and that packed codes are what is read, does."""
    assert run("compress", "zoo:lm", "-o", tmp_path / "out", "--recipe", "rtn", "--bits", "4")[0] == 0
    code, said, _ = run("evaluate", tmp_path / "out", "--against", "zoo:lm", "--speed", "--json", tmp_path / "speed.json")
    assert code == 0 and "writing, tokens/s" in said
    original, small = json.loads((tmp_path / "speed.json").read_text()).values()
    assert min(original["reading"], original["writing"], small["reading"], small["writing"]) > 0
    assert small["bytes_per_token"] < 0.4 * original["bytes_per_token"]


def test_models_of_other_tools_are_inspected_converted_and_compared(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, small = tmp_path / "there", ("--recipe", "W4A16", "--set", "rounding=nearest", "--set", "scale=float16")
    assert run("compress", "zoo:lm", "-o", there, "--format", "gptq", *small)[0] == 0
    (there / "bitwright.json").unlink()  # as another tool would leave it
    code, said, _ = run("inspect", there)
    assert code == 0 and "qweight" in said
    assert run("convert", there, "--to", "awq", "-o", tmp_path / "awq")[0] == 0
    refused(run("convert", there, "--to", "gguf", "-o", tmp_path / "gguf"), "GGUF cannot hold")
    assert not (tmp_path / "gguf").exists()
    refused(run("convert", "zoo:lm", "--to", "awq", "-o", tmp_path / "x"), "not a compressed model")
    refused(run("convert", there, "--to", "magic", "-o", tmp_path / "x"), "There is no format", "gguf")
    monkeypatch.setattr("bitwright.calibrate.drawn.WINDOWS", 2)
    code, said, _ = run(
        "compare", "zoo:lm", "--recipes", "", "--with", there, "--with", tmp_path / "awq", "-o", tmp_path / "c", "--length", 64
    )
    assert code == 0 and "there" in said and "awq" in said
    one, other = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert one["scores"]["divergence"]["kl"] == other["scores"]["divergence"]["kl"]


def test_budgets_are_compared_from_one_scoring(
    run: Run, tmp_path: Path, small_reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.allocation import probes

    asked = ("compare", small_reader, "--recipes", "rtn", "--group", 64, "-o", tmp_path / "c")
    refused(run(*asked, "--budgets", "2,many"), "budgets", "2,3,4")
    refused(run(*asked, "--bits", "2.5"), "bits", "2,3,4")
    refused(run(*asked, "--budgets", "0.2"), "the menu reaches from")
    refused(run(*asked, "--allocation", "greedy"), "--budgets")
    probed: list[int] = []
    real = probes.Fisher.__call__
    monkeypatch.setattr(probes.Fisher, "__call__", lambda self, found: (probed.append(1), real(self, found))[1])
    monkeypatch.setattr("bitwright.calibrate.drawn.WINDOWS", 2)
    small = ("--samples", 2, "--length", 64, "--overwrite")
    code, said, _ = run(*asked, "--budgets", "2.5,4", "--allocation", "integer-program", *small)
    assert code == 0 and "front" in said and len(probed) == 1
    found = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [report["asked"]["allocation"]["budget"] for report in found] == [2.5, 4]
    assert all(report["bpw_linears"] <= budget for report, budget in zip(found, (2.5, 4)))
    assert (tmp_path / "c" / "compare.html").is_file() and (tmp_path / "c" / "rtn-budget-2.5" / "report.html").is_file()


def test_a_stack_is_loaded_at_a_size_and_written_as_a_model_of_its_own(
    run: Run, tmp_path: Path, tiny_llama: Any, tokens: Any
) -> None:
    import bitwright

    bitwright.compress(tiny_llama(num_hidden_layers=1), bitwright.recipes.bitstack(steps=3), tokens(), out=tmp_path / "stack")
    code, said, _ = run("load", tmp_path / "stack", "--size", "90kB", "-o", tmp_path / "small")
    assert code == 0 and "bits per weight" in said and "read back" in said
    took = int(said.split("Loaded ")[1].split(" ")[0].replace(",", ""))
    assert took <= 90_000
    code, said, _ = run("inspect", tmp_path / "small", "--json")
    assert code == 0 and sum(entry["bytes"] for entry in json.loads(said)) == took
    refused(run("load", tmp_path / "stack", "--size", "1kB"), "at least", "raise the size")
    refused(run("load", tmp_path / "stack", "--size", "small"), "is not a size")
    refused(run("load", tmp_path / "stack", "--size", "90kB", "-o", tmp_path / "small"), "--overwrite")
    refused(run("load", tmp_path / "stack", "--size", "90kB", "-o", tmp_path / "stack"), "choose another directory")
    refused(run("evaluate", "zoo:lm", "--size", "9MB"), "one size only", "--recipe bitstack")
    refused(run("compress", "zoo:lm", "-o", tmp_path / "x", "--recipe", "bitstack", "--size", "6MB"), "cut when it is loaded")
