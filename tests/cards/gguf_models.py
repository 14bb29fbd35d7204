"""Card formats, section 3: whole models as GGUF files: what is written reads back equal, and what other tools wrote decodes as they
mean it. llama.cpp itself is asked in gguf_runs.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ggufs import LLAMA3, WIDE, floats, opened, recipe
from torch import Tensor

import bitwright
from bitwright.convert import convert
from bitwright.errors import BadRequest
from bitwright.export.base import format_of, verify
from bitwright.export.gguf import container, llama, rope, writer
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.matrices import GRIDS
from bitwright.export.gguf.model import FILE, Gguf
from bitwright.export.hf import configuration
from bitwright.job import compress
from bitwright.ledger import ledger
from bitwright.progress import silent
from bitwright.recipe import Rule
from bitwright.terms.base import decode

# --- written and read back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "TQ2_0"])  # which is read as TQ1_0, and written on demand
def test_every_type_is_written_as_it_was_foretold(name: str, tiny_llama: Any, tmp_path: Path) -> None:
    chosen = recipe(name, rules=(Rule("o_proj", ignore=True),), head=True)
    in_memory, _ = compress(tiny_llama(**WIDE), chosen)
    loaded, report = compress(tiny_llama(**WIDE), chosen, out=tmp_path / "out", form="gguf")
    file = container.read(tmp_path / "out" / FILE)
    assert report.bytes == sum(e.bytes for e in ledger(tmp_path / "out")) == sum(i.nbytes or 0 for i in file.tensors.values())
    kinds = {e.site: e.dtype for e in ledger(tmp_path / "out") if e.site}
    assert set(kinds.values()) == {name} and set(kinds) == {row.name for row in report.rows}
    assert {row.bits for row in report.rows if row.shape == (256, 256)} == {
        8 * 256 * 256 // BLOCKS[name].weights * BLOCKS[name].bytes
    }
    for site in kinds:
        assert torch.equal(loaded.get_submodule(site).weight, in_memory.get_submodule(site).weight)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, in_memory(ids).logits, atol=1e-5)


def test_trits_have_a_smaller_and_a_faster_type(tiny_llama: Any, tmp_path: Path) -> None:
    compress(tiny_llama(**WIDE), recipe("TQ1_0"), out=tmp_path / "native")
    source = format_of(tmp_path / "native").open(tmp_path / "native")  # type: ignore[union-attr]
    (tmp_path / "out").mkdir()
    Gguf("TQ2_0").write(source, tmp_path / "out", silent)
    verify(source, opened(tmp_path / "out"), silent)
    assert {e.dtype for e in ledger(tmp_path / "out") if e.site} == {"TQ2_0"}
    assert any("CPU" in remark for remark in Gguf().remarks(source.model))


def test_formats_convert_code_for_code(tiny_llama: Any, tmp_path: Path) -> None:
    model = tiny_llama(**WIDE, dtype=torch.bfloat16, tie_word_embeddings=True)
    _, report = compress(model, recipe("Q6_K", head=True), out=tmp_path / "native")
    assert convert(tmp_path / "native", "gguf", tmp_path / "gguf")
    convert(tmp_path / "gguf", "native", tmp_path / "back")
    assert report.bytes > 0 and not any(e.name.startswith("output.") for e in ledger(tmp_path / "gguf"))
    first, last = (format_of(tmp_path / n).open(tmp_path / n) for n in ("native", "back"))  # type: ignore[union-attr]
    assert first.model.tied_head == last.model.tied_head == "lm_head"
    verify(first, last, silent)
    for name in first.model.metas:
        (a,), (b,) = first.terms(name), last.terms(name)
        assert all(torch.equal(a.tensors()[leaf], b.tensors()[leaf]) for leaf in a.tensors())
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits = [bitwright.load(tmp_path / n)(ids).logits for n in ("native", "back", "gguf")]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_the_zoo_model_goes_through(tmp_path: Path) -> None:
    compress("zoo:lm", recipe("Q4_K"), out=tmp_path / "out", form="gguf")
    (tmp_path / "file.gguf").write_bytes((tmp_path / "out" / FILE).read_bytes())
    assert [e.bytes for e in ledger(tmp_path / "file.gguf")] == [e.bytes for e in ledger(tmp_path / "out")]
    assert {e.dtype for e in ledger(tmp_path / "out")} == {"Q4_K", "BF16", "F32"}  # bf16 stays what it is, vectors are fp32
    told = container.read(tmp_path / "file.gguf").metadata
    assert told["general.file_type"] == 15 and told["tokenizer.ggml.pre"] == "gpt-2" and len(told["tokenizer.ggml.tokens"]) == 4096
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out")("some text").input_ids  # its files lie beside the weights
    with pytest.raises(BadRequest, match="does not compress"):
        compress(tmp_path / "file.gguf", recipe("Q8_0"))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
        {"rope_parameters": LLAMA3},
        {"rms_norm_eps": 3e-6, "head_dim": 64, "bos_token_id": 5, "eos_token_id": 6},
        {"dtype": torch.float16, "tie_word_embeddings": True},
    ],
    ids=["biases", "linear rope", "llama3 rope", "numbers", "tied fp16"],
)
def test_configurations_come_back(changes: dict[str, Any], tiny_llama: Any, tmp_path: Path) -> None:
    source = floats(tiny_llama(**changes))
    Gguf().write(source, tmp_path, silent)
    found = opened(tmp_path)
    verify(source, found, silent)
    mine, its = (llama.configured(config).to_dict() for config in (source.model.config, found.model.config))
    del mine["dtype"], its["dtype"]  # a file has a type for each tensor and none for the model
    assert mine == its
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(bitwright.load(tmp_path)(ids).logits, bitwright.load(tiny_llama(**changes))(ids).logits)


def test_rows_move_so_that_pairs_turn_as_halves() -> None:
    place = llama.Place("q", "q", (3 * 8, 1), heads=3)
    x, angle, order = torch.randn(24, dtype=torch.float64), torch.rand(4, dtype=torch.float64), place.order()
    assert order is not None and sorted(order.tolist()) == list(range(24))
    a, b = x.view(3, 2, 4).unbind(1)
    halves = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1).flatten()
    even, odd = x[order].view(3, 4, 2).unbind(2)
    pairs = torch.stack([even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()], 2).flatten()
    assert torch.equal(halves[order], pairs)


# --- files of other tools ----------------------------------------------------------------------------------------------------


def anything(name: str, rows: int, inp: int) -> Tensor:
    """The bytes of a matrix as no fit of ours would choose them: scales of both signs, and zeros."""
    block, gen = BLOCKS[name], torch.Generator().manual_seed(1)
    leaves = block.unpack(torch.randint(0, 256, (rows, inp // block.weights * block.bytes), generator=gen, dtype=torch.uint8))
    for leaf, x in leaves.items():
        if x.dtype == torch.float16:
            leaves[leaf] = (torch.randn(x.shape, generator=gen) * (0.01 if leaf == leaf.split("_")[0] else 0.001)).half()
            leaves[leaf][0, 0] = 0
    if name == "MXFP4":
        leaves["scale"] = leaves["scale"] % 16 + 110
    if name == "TQ2_0":
        leaves["codes"] = leaves["codes"] % 3
    for leaf in {"scale", "min"} & set(leaves):  # a group whose codes are all one number
        if leaves[leaf].dtype != torch.float16 and name != "MXFP4":
            leaves[leaf][:2] = 0 if leaf == "scale" else leaves[leaf][:2]
    return block.pack(leaves)


def foreign(path: Path, name: str, root: Path, **changes: Any) -> dict[str, Tensor]:
    """A file with every matrix of a type; the bytes by name. `changes`: metadata, None to leave one out."""
    config = llama.configured(configuration(root))
    infos, data = {}, {}
    for place in llama.sizes(config, True).places():
        coded = len(place.shape) == 2
        infos[place.stored] = place.shape, name if coded else "F32"
        data[place.stored] = anything(name, *place.shape) if coded else torch.ones(place.shape).view(1, -1).view(torch.uint8)
    head = {"general.architecture": "llama"} | llama.metadata(config) | changes
    writer.write(path, {key: value for key, value in head.items() if value is not None}, infos, data.items())
    return data


@pytest.mark.parametrize("name", GRIDS)
def test_any_bytes_decode_as_the_type_says(name: str, tiny_llama: Any, tmp_path: Path) -> None:
    data, path = foreign(tmp_path / "x.gguf", name, tiny_llama(**WIDE)), tmp_path / "x.gguf"
    source = opened(path)
    for place in llama.sizes(llama.configured(source.model.config), True).places():
        if len(place.shape) == 2:
            block = BLOCKS[name]
            wanted = block.decode(block.unpack(data[place.stored]))
            got = decode(source.terms(place.name.removesuffix(".weight")))
            assert torch.equal(got if place.order() is None else got[place.order()], wanted)
    model = bitwright.load(path)
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(3, 256)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.T, atol=1e-4, rtol=1e-4)
    Gguf(ternary=name if name == "TQ2_0" else "TQ1_0").write(source, tmp_path, silent)  # type: ignore[arg-type]
    again = container.read(tmp_path / FILE)
    if name != "MXFP4" and name[0] != "T":  # minus zero is written as zero, and some bytes stand for the same trits
        assert all(torch.equal(again.data(n).flatten(), x.flatten()) for n, x in data.items() if x.shape[0] > 1)


WRONG = (None, "text", np.int32(-1), np.uint32(0), np.float32("nan"), np.uint64(2**63), [np.uint32(4)] * 2, True)


def test_metadata_of_any_kind_ends_in_a_sentence(tiny_llama: Any, tmp_path: Path, within: Any) -> None:
    root, path = tiny_llama(**WIDE), tmp_path / "x.gguf"
    keys = [*llama.metadata(llama.configured(configuration(root))), "general.architecture", "llama.rope.scaling.type"]
    others = ["llama.rope.scaling.factor", "llama.expert_count", "tokenizer.ggml.bos_token_id", rope.KEY, "llama.rope.scale_linear"]
    refused = 0
    for key in keys + others:
        for value in WRONG:
            foreign(path, "Q8_0", root, **{key: value})
            try:
                with within(10):
                    opened(path)
            except BadRequest as error:
                refused += 1
                assert str(error).count(". ") == 0 and ";" in str(error), error
    assert refused > 60
    foreign(path, "Q8_0", root, **{"llama.block_count": np.uint32(2**31 - 1)})
    with within(5), pytest.raises(BadRequest, match=r"lacks the tensor blk\.1\.attn_norm"):
        opened(path)


def test_tensors_that_are_missing_or_odd_end_in_a_sentence(tiny_llama: Any, tmp_path: Path) -> None:
    Gguf().write(floats(tiny_llama()), tmp_path, silent)
    whole = container.read(tmp_path / FILE)

    def changed(name: str, shape: tuple[int, ...] | None, kind: str = "F32") -> Path:
        infos = {n: (i.shape, i.type) for n, i in whole.tensors.items() if n != name} | ({name: (shape, kind)} if shape else {})
        blank = ((n, torch.zeros(1, writer.size(*told), dtype=torch.uint8)) for n, told in infos.items())
        writer.write(tmp_path / "y.gguf", whole.metadata, infos, blank)
        return tmp_path / "y.gguf"

    q = "blk.1.attn_q.weight"
    for name, shape, kind, why in (
        (q, None, "F32", f"lacks the tensor {q}"),
        (q, (64, 32), "F32", r"is \(64, 32\) and should be \(64, 64\)"),
        (q, (64, 64), "IQ4_NL", f"{q} .* has the type IQ4_NL.*such as Q4_K"),
        (q, (64, 64), "F64", "has the type F64"),
        ("blk.9.attn_q.weight", (64, 64), "F32", "blk.9.attn_q.weight.*no Llama model"),
        ("blk.0.attn_q.bias", (64,), "F32", "lacks the tensor blk.0.attn_k.bias"),
        ("rope_freqs.weight", (8,), "F32", "no known rotary scaling"),
        ("rope_freqs.weight", (8,), "I32", "not a vector"),
    ):
        with pytest.raises(BadRequest, match=why):
            opened(changed(name, shape, kind))
    damaged = changed("blk.0.ffn_up.weight", (96, 64), "Q8_0")
    raw = bytearray(damaged.read_bytes())
    at = container.read(damaged).tensors["blk.0.ffn_up.weight"].offset
    raw[at : at + 2] = b"\xff\xff"  # a scale that is NaN
    damaged.write_bytes(raw)
    with pytest.raises(BadRequest, match="NaN or infinity"):
        opened(damaged).terms("model.layers.0.mlp.up_proj")


def test_published_rope_factors_are_recognised_without_our_key() -> None:
    for factor in (8.0, 32.0):
        numbers = {**LLAMA3, "factor": factor, "original_max_position_embeddings": 8192}
        stored = rope.divisors(numbers, 128)
        assert stored is not None and stored.min() == 1 and stored.max() == factor
        assert rope.read({}, 500000.0, stored, 128) == numbers
        with pytest.raises(BadRequest, match="no known rotary scaling"):
            rope.read({rope.KEY: json.dumps({"factor": 2})}, 500000.0, stored * 1.01, 128)
