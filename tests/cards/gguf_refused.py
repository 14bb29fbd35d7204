"""Card formats, section 3: which type is taken, and what has no place in a GGUF file: grids, models, tokenizers, directories."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ggufs import WIDE, floats, meta, recipe

import bitwright
from bitwright import zoo
from bitwright.corrections.outliers import Outliers
from bitwright.errors import BadRequest
from bitwright.export.base import format_of
from bitwright.export.gguf import tokenizer
from bitwright.export.gguf.matrices import GRIDS, holder
from bitwright.export.gguf.model import FILE, Gguf
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E4M3, E8M0
from bitwright.grids.offset import Offset
from bitwright.grids.scales import Float
from bitwright.grids.second_level import SecondLevel
from bitwright.grids.table import Table
from bitwright.job import Job, compress
from bitwright.layout import Layout
from bitwright.progress import silent
from bitwright.recipe import Recipe

# --- what has no place -------------------------------------------------------------------------------------------------------


def test_the_smallest_type_that_holds_is_taken(tiny_llama: Any, tmp_path: Path) -> None:
    signed = SecondLevel(64, "row", signed=True)
    for grid, group, name in (
        (Integer(9, True), 64, "Q4_0"), (Integer(15, True), None, "Q4_0"), (Integer(255, True), 128, "Q8_0"),
        (Integer(17, True), 32, "Q5_0"), (Offset(9), 128, "Q4_1"), (Integer(3, True), 256, "TQ1_0"), (Table("ternary"), 64, "Q4_0"),
        (Integer(7, True, scale=signed), 32, "Q3_K"), (Integer(33, True, scale=replace(signed, levels=128)), 16, "Q6_K"),
        (Table("e2m1", scale=E8M0("floor")), 128, "MXFP4"), (replace(GRIDS["Q4_K"], levels=11), 32, "Q4_K"),
    ):  # fmt: skip
        found = holder([meta(grid, group)])
        assert not isinstance(found, str) and found.name == name, (grid, found)
    chosen = Recipe(Integer(9, True), Layout(4, 128))
    _, report = compress(tiny_llama(**WIDE), chosen, out=tmp_path / "out", form="gguf")
    assert any("more bytes than their codes need" in note for note in report.notes)


def test_what_no_type_holds_is_refused_with_the_nearest(tiny_llama: Any) -> None:
    for metas, why in (
        ([meta(Integer(16), 32)], "zero points.*nearest is Q4_1"),
        ([meta(Integer(16, True, scale=Float("bfloat16")), 32)], "'bfloat16'.*nearest is Q4_0"),
        ([meta(Integer(512, True), 32)], "512 levels.*nearest is Q8_0"),
        ([meta(Integer(16, True), 16)], "groups of 16.*nearest is Q4_0"),
        ([meta(Table("nf4"), 32)], "'nf4'.*the nearest is"),
        ([meta(Table("e2m1", scale=E4M3()), 16)], "'e2m1'.*nearest is MXFP4"),
        ([meta(replace(GRIDS["Q4_K"], minimum=Float()), 32)], "the nearest is Q4_K"),
        ([meta(replace(GRIDS["Q4_K"], scale=SecondLevel(64, 4)), 32)], "the nearest is Q4_K"),
        ([meta(GRIDS["Q4_K"], 32, (16, 288))], "rows of 288 weights are not whole blocks of 256"),
        ([meta(GRIDS["Q8_0"], None, (16, 48))], "the nearest is Q8_0"),
        ([{**meta(GRIDS["Q8_0"], 32), "columns": 256}], "permutation"),
        ([meta(GRIDS["Q8_0"], 32), {"kind": "low_rank"}], r"sum of terms \(coded \+ low_rank\)"),
    ):
        assert isinstance(holder(metas), str)
        with pytest.raises(BadRequest, match=why):
            Gguf().bits("w", metas)
    with pytest.raises(BadRequest, match=r"GGUF cannot hold model\.layers\.0.*sum of terms"):
        Job.of(tiny_llama(**WIDE), recipe("Q8_0", corrections=(Outliers(),)), None, form="gguf")


def test_models_that_llama_cpp_would_not_run_are_refused(tiny_llama: Any) -> None:
    source = floats(tiny_llama()).model
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 1.0, "original_max_position_embeddings": 64}
    part = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert Gguf().refusal(source) is None
    for changes, why in (
        ({"config": {**source.config, "model_type": "gpt2"}}, "'gpt2'"),
        ({"config": {**source.config, "hidden_act": "gelu"}}, "'gelu'"),
        ({"config": {**source.config, "rope_parameters": yarn}}, "'yarn'"),
        ({"config": {**source.config, "rope_parameters": part}}, "a part of each"),
        ({"kept": {**source.kept, "extra.weight": ((4,), torch.float32)}}, "no place for the tensor extra.weight"),
        ({"kept": {**source.kept, "model.norm.weight": ((64,), torch.float64)}}, "float64"),
        ({"metas": {"extra": [meta(GRIDS["Q8_0"], 32)]}}, "no place for the matrix extra"),
    ):
        assert why in str(Gguf().refusal(replace(source, **changes)))  # type: ignore[arg-type]


# --- tokenizers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """The tokenizer of zoo:lm as metadata, with some of its files changed."""
    whole, beside = (json.loads((zoo.path("lm") / n).read_text()) for n in ("tokenizer.json", "tokenizer_config.json"))

    def make(vocabulary: int = 4096, model: Any = None, config: Any = None, **changes: Any) -> dict[str, Any]:
        (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, "model": {**whole["model"], **(model or {})}, **changes}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**beside, **(config or {})}))
        return tokenizer.metadata(sorted(tmp_path.iterdir()), vocabulary, {})

    yield make


def test_tokenizers_are_written_or_refused(words: Any, tmp_path: Path) -> None:
    found = words(4100, config={"chat_template": "{{ x }}"})
    assert found["tokenizer.ggml.pre"] == "gpt-2" and found["tokenizer.chat_template"] == "{{ x }}"
    assert found["tokenizer.ggml.bos_token_id"] == found["tokenizer.ggml.eos_token_id"] == 0
    assert found["tokenizer.ggml.token_type"].tolist() == [3] + 4095 * [1] + 4 * [5]
    assert found["tokenizer.ggml.merges"][1] == "Ġ t" and not found["tokenizer.ggml.add_bos_token"]
    for name, (steps, whole_words) in tokenizer.PRE.items():
        told = words(
            model={"ignore_merges": whole_words},
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{**s, "trim_offsets": True} for s in steps]},
        )
        assert told["tokenizer.ggml.pre"] == name
    end = "<|endoftext|>"
    begin = {"type": "TemplateProcessing", "pair": [], "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}}}
    mark, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    both = words(post_processor={**begin, "single": [mark, text, mark]})
    assert both["tokenizer.ggml.add_bos_token"] and both["tokenizer.ggml.add_eos_token"]
    for changes, why in (
        ({"vocabulary": 4000}, "token id 4095 and the embedding 4000 rows"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no name in llama.cpp"),
        ({"model": {"type": "Unigram"}}, "'Unigram'"),
        ({"model": {"byte_fallback": True}}, "byte_fallback"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"post_processor": {**begin, "single": [mark, mark, text]}}, "other tokens around"),
        ({"model": {"vocab": None}}, "lacks what a byte-level BPE has"),
    ):
        with pytest.raises(BadRequest, match=why):
            words(**changes)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadRequest, match="cannot be read"):
        tokenizer.metadata(list(tmp_path.iterdir()), 4096, {})
    assert tokenizer.metadata([], 4096, {}) == {"tokenizer.ggml.model": "none"}
    assert tokenizer.metadata([], 9, {"eos_token_id": [3, 4], "bos_token_id": 9})["tokenizer.ggml.eos_token_id"] == 3


def test_a_tokenizer_without_a_place_is_refused_before_the_work(tmp_path: Path) -> None:
    shutil.copytree(zoo.path("lm"), tmp_path / "lm")
    whole = json.loads((tmp_path / "lm" / "tokenizer.json").read_text())
    (tmp_path / "lm" / "tokenizer.json").write_text(json.dumps({**whole, "pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(BadRequest, match="splits text in a way"):
        Job.of(tmp_path / "lm", recipe("Q8_0"), None, form="gguf")


def test_directories_are_recognised_by_their_only_file(tiny_llama: Any, tmp_path: Path) -> None:
    Gguf().write(floats(tiny_llama()), tmp_path, silent)
    assert format_of(tmp_path) == format_of(tmp_path / FILE) == Gguf()
    shutil.copy(tiny_llama() / "config.json", tmp_path)
    assert format_of(tmp_path) == Gguf()
    shutil.copy(tiny_llama() / "model.safetensors", tmp_path)
    assert format_of(tmp_path) is None  # the model that the file was made from
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(tmp_path / FILE, tmp_path / "two" / name)
    assert format_of(tmp_path / "two") is None
    with pytest.raises(BadRequest, match="not a model directory"):
        bitwright.load(tmp_path / "two")
    assert bitwright.load(tmp_path / "two" / "a.gguf").config.hidden_size == 64
