"""Card formats: OpenVINO. Its CPU plugin runs what we write and agrees with what we judge; the file reads back to its terms."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import CASES, RECIPES, WIDE, apart, logits, made, recipe, text, written
from torch import Tensor

import bitwright
from bitwright.convert import convert
from bitwright.errors import BadRequest
from bitwright.export.base import Model, bytes_of, format_of, verify
from bitwright.export.native import Native
from bitwright.export.openvino.directory import DATA, FILE, Openvino
from bitwright.grids.integer import Integer
from bitwright.ledger import ledger
from bitwright.progress import silent
from bitwright.recipe import Rule

ov = pytest.importorskip("openvino")

FP32 = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise bfloat16, where the processor has it


def run(path: Path, ids: Tensor, **options: str) -> Tensor:
    compiled = ov.Core().compile_model(path / FILE, "CPU", {"INFERENCE_NUM_THREADS": 1, **options})
    return torch.from_numpy(compiled({"input_ids": ids.numpy()})["logits"].copy())


@pytest.mark.parametrize("name", RECIPES)
def test_openvino_agrees_with_what_was_judged(name: str, tmp_path: Path) -> None:
    source, _ = written("zoo:lm", name, Openvino(), tmp_path)
    ids = text()
    ours = logits(tmp_path, ids)
    far, kl = apart(ours, run(tmp_path, ids, **FP32))
    assert far < 1e-3 and kl < 1e-7
    assert apart(ours, run(tmp_path, ids))[1] < 2e-3  # as it comes
    weights = bytes_of(Openvino(), source.model)
    assert weights <= (tmp_path / DATA).stat().st_size < weights + 150_000  # the graph's own numbers, tables of angles above all


def test_bfloat16_does_not_lose_the_place_in_a_long_text(tmp_path: Path) -> None:
    """Angles computed in bfloat16 round places above 256; the graph looks them up instead."""
    written("zoo:lm", "4 bits, groups of 32", Openvino(), tmp_path)
    ids = text().flatten().repeat(4)[None, :640]
    ours, theirs = logits(tmp_path, ids), run(tmp_path, ids)
    assert apart(ours[:, 512:], theirs[:, 512:])[1] < 2e-3


@pytest.mark.parametrize("name", ["mixed", "mixed otherwise"])
def test_every_matrix_reads_back_and_runs(name: str, tmp_path: Path, tiny_llama: Any) -> None:
    source, found = written(str(tiny_llama(**WIDE)), name, Openvino(), tmp_path)
    assert dict(found.model.metas) == dict(source.model.metas) and dict(found.model.config) == dict(source.model.config)
    constants = [op for op in ov.Core().read_model(tmp_path / FILE).get_ops() if op.get_type_name() == "Constant"]
    named = {e.name for e in found.entries}
    lying = sum(op.get_byte_size() for op in constants if op.get_friendly_name() in named)
    assert lying == sum(e.bytes for e in ledger(tmp_path)) == bytes_of(Openvino(), source.model)
    for site, metas in source.model.metas.items():
        assert Openvino().bits(site, metas) == 8 * sum(e.bytes for e in found.entries if e.site == site)
    ids = torch.randint(0, 96, (3, 21))
    ours = logits(tmp_path, ids)
    assert apart(ours, run(tmp_path, ids, **FP32))[0] < 1e-4 * float(ours.abs().max())


WAYS: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_llama_is_the_same_function(way: str, tmp_path: Path, tiny_llama: Any) -> None:
    dtype = torch.float16 if way == "tied" else torch.float32
    written(str(tiny_llama(dtype, **WAYS[way])), "4 bits, groups of 32", Openvino(), tmp_path)
    ids = torch.randint(0, 96, (2, 64))
    ours = logits(tmp_path, ids)
    assert apart(ours, run(tmp_path, ids, **FP32))[0] < 1e-4 * float(ours.abs().max())


def test_kept_matrices_and_compressed_heads_stand_side_by_side(tmp_path: Path, tiny_llama: Any) -> None:
    rules = (Rule("re:.*mlp.*", ignore=True), Rule("model.embed_tokens", ignore=True), Rule("lm_head", grid=Integer(256, True)))
    bitwright.compress(tiny_llama(), recipe(Integer(16), 32, rules=rules, head=True), out=tmp_path / "native")
    convert(tmp_path / "native", "openvino", tmp_path / "ov")
    assert "lm_head" in Openvino().open(tmp_path / "ov").model.metas
    ids = torch.randint(0, 96, (2, 9))
    assert apart(logits(tmp_path / "native", ids), run(tmp_path / "ov", ids, **FP32))[0] < 1e-3


def test_convert_there_and_back(tmp_path: Path, tiny_llama: Any) -> None:
    native = made(str(tiny_llama()), "9 levels")
    for to, of in (("openvino", native), ("onnx", tmp_path / "openvino"), ("native", tmp_path / "openvino")):
        if to != "onnx" or pytest.importorskip("onnx"):
            convert(of, to, tmp_path / to)
            told = json.loads((tmp_path / to / "bitwright.json").read_text())
            assert told["report"]["bytes"] == sum(e.bytes for e in ledger(tmp_path / to))
    verify(Native().open(native), Native().open(tmp_path / "native"), silent)
    assert isinstance(format_of(tmp_path / "openvino"), Openvino)


def test_compress_writes_it(tmp_path: Path, tiny_llama: Any) -> None:
    _, report = bitwright.compress(tiny_llama(), CASES["2 bits, zeros"], out=tmp_path, form="openvino")
    assert report.bytes == sum(e.bytes for e in ledger(tmp_path)) and "codes of 4 levels take 4 bits" in " ".join(report.notes)


def test_tensors_that_the_graph_does_not_read_are_refused(tiny_llama: Any) -> None:
    model = Native().open(made(str(tiny_llama()), "9 levels")).model
    more = Model(model.config, model.metas, {**model.kept, "model.extra": ((2,), torch.float32)})
    assert "model.extra" in str(Openvino().refusal(more)) and Openvino().refusal(model) is None


def test_files_of_others_and_damaged_ones_are_refused(tmp_path: Path, tiny_llama: Any) -> None:
    written(str(tiny_llama()), "4 bits, groups of 64, zeros", Openvino(), tmp_path)
    whole, data = (tmp_path / FILE).read_text(), (tmp_path / DATA).read_bytes()
    begin, end = whole.index("<bitwright"), whole.index("/>", whole.index("<bitwright")) + 2
    texts = {
        "not written by": whole[:begin] + whole[end:],
        "The document": whole[:begin] + '<bitwright value="{}" />' + whole[end:],
        "truncated": whole[: len(whole) // 2],
        "lacks the tensor|is not": whole.replace("model.norm.weight", "model.morn.weight", 1),
    }
    for words, damaged in texts.items():
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(BadRequest, match=words):
            Openvino().open(tmp_path)
    (tmp_path / FILE).write_bytes(whole.encode().replace(b"model.norm.weight", b"model.n\xa5rm.weight"))
    with pytest.raises(BadRequest, match="damaged"):
        Openvino().open(tmp_path)
    (tmp_path / FILE).write_text(whole)
    for cut in (0, 100, len(data) - 1):
        (tmp_path / DATA).write_bytes(data[:cut])
        with pytest.raises(BadRequest, match="damaged"):
            Openvino().open(tmp_path)
