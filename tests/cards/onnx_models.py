"""Card formats: ONNX. onnxruntime runs what we write and agrees with what we judge; the file reads back to the same terms."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import CASES, RECIPES, WIDE, apart, logits, made, recipe, text, written
from safetensors.torch import load_file, save_file
from torch import Tensor

import bitwright
from bitwright import index
from bitwright.convert import convert
from bitwright.corrections.lorc import Lorc
from bitwright.errors import BadRequest
from bitwright.export.base import bytes_of, format_of, verify
from bitwright.export.native import Native
from bitwright.export.onnx import directory
from bitwright.export.onnx.directory import FILE, Onnx, OnnxQdq
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E8M0
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.ledger import ledger
from bitwright.progress import silent
from bitwright.recipe import Rule

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

FP32 = {"session.qdq_matmulnbits_accuracy_level": "1"}  # otherwise dequantized products get inputs of 8 bits


def run(path: Path, ids: Tensor, **options: str) -> Tensor:
    told = ort.SessionOptions()
    told.intra_op_num_threads = 1
    for key, value in options.items():
        told.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(path / FILE), told, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"input_ids": ids.numpy()})[0])


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path / FILE).graph.node}


@pytest.mark.parametrize("name", RECIPES)
def test_onnxruntime_agrees_with_what_was_judged(name: str, tmp_path: Path) -> None:
    written("zoo:lm", name, Onnx(), tmp_path)
    ids = text()
    ours = logits(tmp_path, ids)
    far, kl = apart(ours, run(tmp_path, ids, **FP32))
    assert far < 1e-3 and kl < 1e-7
    far, kl = apart(ours, run(tmp_path, ids))  # as it comes: only dequantized matrices get inputs of 8 bits
    assert kl < 5e-3 and (far < 1e-3) == ("channels" not in name)


def test_the_standard_style_agrees_too(tmp_path: Path) -> None:
    written("zoo:lm", "4 bits, groups of 64, zeros", OnnxQdq(), tmp_path)
    assert "MatMulNBits" not in operators(tmp_path)
    ids = text()
    far, kl = apart(logits(tmp_path, ids), run(tmp_path, ids, **FP32))
    assert far < 1e-3 and kl < 1e-7
    onnx.checker.check_model(str(tmp_path / FILE), full_check=True)


def test_inputs_of_8_bits_are_another_model(tmp_path: Path) -> None:
    written("zoo:lm", "4 bits, groups of 64, zeros", Onnx(accuracy=4), tmp_path)
    ids = text()
    assert 1e-5 < apart(logits(tmp_path, ids), run(tmp_path, ids))[1] < 1e-2


@pytest.mark.parametrize("form", [Onnx(), OnnxQdq()], ids=["matmulnbits", "qdq"])
@pytest.mark.parametrize("name", ["mixed", "mixed otherwise"])
def test_every_matrix_reads_back_and_runs(name: str, form: Any, tmp_path: Path, tiny_llama: Any) -> None:
    source, found = written(str(tiny_llama(**WIDE)), name, form, tmp_path)
    assert dict(found.model.metas) == dict(source.model.metas) and dict(found.model.config) == dict(source.model.config)
    lying = sum(len(t.raw_data) for t in onnx.load(tmp_path / FILE).graph.initializer)
    assert lying == sum(e.bytes for e in ledger(tmp_path)) == bytes_of(form, source.model)
    for site, metas in source.model.metas.items():
        assert form.bits(site, metas) == 8 * sum(e.bytes for e in found.entries if e.site == site)
    ids = torch.randint(0, 96, (3, 21))
    far, _ = apart(logits(tmp_path, ids), run(tmp_path, ids, **FP32))
    assert far < 1e-4 * float(logits(tmp_path, ids).abs().max())


WAYS: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32, "num_key_value_heads": 1},
    "a head for every query": {"num_key_value_heads": 4, "rms_norm_eps": 1e-3},
    "tied": {"tie_word_embeddings": True},
    "long": {"max_position_embeddings": 300, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}},
    "yarn": {"max_position_embeddings": 300, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_llama_is_the_same_function(way: str, tmp_path: Path, tiny_llama: Any) -> None:
    dtype = torch.float16 if way == "tied" else torch.float32
    written(str(tiny_llama(dtype, **WAYS[way])), "4 bits, groups of 32", Onnx(), tmp_path)
    ids = torch.randint(0, 96, (2, WAYS[way].get("max_position_embeddings", 64)))
    ours = logits(tmp_path, ids)
    assert apart(ours, run(tmp_path, ids))[0] < 1e-4 * float(ours.abs().max())


def test_kept_matrices_and_compressed_heads_stand_side_by_side(tmp_path: Path, tiny_llama: Any) -> None:
    rules = (Rule("re:.*mlp.*", ignore=True), Rule("model.embed_tokens", ignore=True), Rule("lm_head", grid=Integer(256, True)))
    bitwright.compress(tiny_llama(), recipe(Integer(16), 32, rules=rules, head=True), out=tmp_path / "native")
    convert(tmp_path / "native", "onnx", tmp_path / "onnx")
    found = Onnx().open(tmp_path / "onnx")
    assert "lm_head" in found.model.metas and "model.layers.0.mlp.up_proj.weight" in found.model.kept
    ids = torch.randint(0, 96, (2, 9))
    assert apart(logits(tmp_path / "native", ids), run(tmp_path / "onnx", ids))[0] < 1e-3


def test_tensors_that_the_graph_does_not_read_stay_in_the_file(tmp_path: Path, tiny_llama: Any) -> None:
    shutil.copytree(tiny_llama(), tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    spare = "model.layers.0.self_attn.rotary_emb.inv_freq"  # as old checkpoints have it
    save_file(tensors | {spare: torch.arange(8.0)}, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    bitwright.compress(tmp_path / "old", CASES["9 levels"], out=tmp_path / "native")
    convert(tmp_path / "native", "onnx", tmp_path / "out")
    with pytest.raises(BadRequest, match="inv_freq"):
        convert(tmp_path / "native", "openvino", tmp_path / "ov")
    assert torch.equal(Onnx().open(tmp_path / "out").tensor(spare), torch.arange(8.0))
    run(tmp_path / "out", torch.randint(0, 96, (1, 5)))


def test_convert_there_and_back(tmp_path: Path, tiny_llama: Any) -> None:
    native = made(str(tiny_llama()), "9 levels")
    for to, of in (("onnx", native), ("onnx-qdq", tmp_path / "onnx"), ("native", tmp_path / "onnx-qdq")):
        convert(of, to, tmp_path / to)
        told = json.loads((tmp_path / to / "bitwright.json").read_text())
        assert told["report"]["bytes"] == sum(e.bytes for e in ledger(tmp_path / to))
    verify(Native().open(native), Native().open(tmp_path / "native"), silent)
    assert isinstance(format_of(tmp_path / "onnx"), Onnx) and isinstance(format_of(tmp_path / "onnx" / FILE), Onnx)


def test_compress_writes_it(tmp_path: Path, tiny_llama: Any) -> None:
    model, report = bitwright.compress(tiny_llama(), CASES["2 bits, zeros"], out=tmp_path, form="onnx")
    assert report.bytes == sum(e.bytes for e in ledger(tmp_path)) and "cache" in " ".join(report.notes)
    ids = torch.randint(0, 96, (1, 9))
    assert apart(model(ids).logits.detach(), run(tmp_path, ids))[0] < 1e-3


def test_large_weights_lie_beside_the_graph(tmp_path: Path, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "APART", 0)
    for _ in range(2):  # the second takes the place of the first
        written(str(tiny_llama()), "4 bits, groups of 32", Onnx(), tmp_path)
    assert (tmp_path / FILE).stat().st_size < (tmp_path / directory.DATA).stat().st_size < 200_000
    ids = torch.randint(0, 96, (2, 9))
    assert apart(logits(tmp_path, ids), run(tmp_path, ids))[0] < 1e-3
    (tmp_path / directory.DATA).unlink()
    with pytest.raises(BadRequest, match="damaged"):
        Onnx().open(tmp_path)


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "'nf4'": (recipe(Table("nf4"), 32), {}),
    "at most 8 bits": (recipe(Integer(1000), 32), {}),
    "'e8m0'": (recipe(Integer(15, True, scale=E8M0()), 32), {}),
    "sum of terms": (recipe(Integer(16), 32, corrections=(Lorc(2),)), {}),
    "blocks of 8 x 8": (bitwright.Recipe(Integer(16), Layout(8, 8), CASES["9 levels"].rounding, name="graph"), {}),
    "without --head": (recipe(Integer(16), 32, head=True), {"tie_word_embeddings": True}),
    "'gelu'": (recipe(Integer(16), 32), {"hidden_act": "gelu"}),
    "turns whole heads": (recipe(Integer(16), 32), {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "'dynamic'": (recipe(Integer(16), 32), {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.parametrize("form", ["onnx", "onnx-qdq", "openvino"])
def test_what_it_cannot_hold_is_refused_before_the_work(words: str, form: str, tmp_path: Path, tiny_llama: Any) -> None:
    pytest.importorskip(form.partition("-")[0])
    what, changes = REFUSED[words]
    with pytest.raises(BadRequest, match=words) as caught:
        bitwright.compress(tiny_llama(**changes), what, out=tmp_path / "out", form=form)
    assert str(caught.value).count(". ") == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_library_that_is_not_there_is_named_before_the_work(
    form: str, tmp_path: Path, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, form, None)
    with pytest.raises(BadRequest, match=rf"library {form}; pip install 'bitwright\[export\]'"):
        bitwright.compress(tiny_llama(), CASES["9 levels"], out=tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_refused(tiny_llama: Any) -> None:
    model = Native().open(made(str(tiny_llama()), "9 levels")).model
    other = type(model)({**model.config, "model_type": "gpt2"}, model.metas, model.kept)
    lacking = type(model)(model.config, model.metas, {k: v for k, v in model.kept.items() if k != "model.norm.weight"})
    for name in ("onnx", "onnx-qdq", *(["openvino"] if find_spec("openvino") else [])):
        form = index.form(name)
        assert "'gpt2'" in form.refusal(other) and "model.norm.weight" in form.refusal(lacking)


def test_files_of_others_and_damaged_ones_are_refused(tmp_path: Path, tiny_llama: Any) -> None:
    written(str(tiny_llama()), "4 bits, groups of 64, zeros", Onnx(), tmp_path)
    path, whole = tmp_path / FILE, (tmp_path / FILE).read_bytes()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadRequest, match=r"damaged|not written by"):
            Onnx().open(tmp_path)
    proto = onnx.load_from_string(whole)
    shorter = onnx.ModelProto.FromString(whole)
    shorter.graph.initializer[0].raw_data = b"123"
    nameless = onnx.ModelProto.FromString(whole)
    nameless.metadata_props[0].value = "{}"
    gone = onnx.ModelProto.FromString(whole)
    del gone.graph.initializer[-1]
    del proto.metadata_props[:]
    for damaged, words in ((proto, "not written by"), (shorter, "damaged"), (nameless, "damaged"), (gone, "damaged")):
        path.write_bytes(damaged.SerializeToString())
        with pytest.raises(BadRequest, match=words):
            Onnx().open(tmp_path)


def test_codes_that_no_grid_has_are_refused(tmp_path: Path, tiny_llama: Any) -> None:
    written(str(tiny_llama()), "5 levels, zeros, few groups", Onnx(), tmp_path)
    proto = onnx.load(tmp_path / FILE)
    name = next(t.name for t in proto.graph.initializer if t.name.endswith(".codes"))
    for t in proto.graph.initializer:
        if t.name == name:
            t.raw_data = b"\xff" * len(t.raw_data)
    onnx.save(proto, tmp_path / FILE)
    with pytest.raises(BadRequest, match="damaged"):
        Onnx().open(tmp_path).terms(name.removesuffix(".codes"))
