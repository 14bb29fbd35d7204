"""Card formats, sections 4 and 5: GPTQ's and AWQ's words, read here field by field as the card describes them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bitwright
from bitwright.convert import convert
from bitwright.errors import BadRequest
from bitwright.export.awq import Awq
from bitwright.export.gptq import Gptq
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.gptq import GPTQ

GROUP = 32


def recipe(bits: int, symmetric: bool = False, **parts) -> Recipe:
    return replace(Recipe(Integer(2**bits, symmetric), Layout(1, GROUP), name="test"), **parts)


def field(words: Tensor, bits: int, i: int) -> Tensor:
    """Field i of a little-endian stream of 32-bit words along the first axis."""
    low, at = i * bits // 32, i * bits % 32
    value = words[low].long() & 0xFFFFFFFF
    if at + bits > 32:
        value |= (words[low + 1].long() & 0xFFFFFFFF) << 32
    return value >> at & 2**bits - 1


def gptq_weight(t: dict[str, Tensor], bits: int, v1: bool) -> Tensor:
    """[out, inp], column by column."""
    out = t["qweight"].shape[1]
    zeros = torch.stack([field(t["qzeros"].T, bits, o) for o in range(out)])
    zeros = zeros + 1 if v1 else zeros
    columns = []
    for i, g in enumerate(t["g_idx"].tolist()):
        columns.append(t["scales"][g].float() * (field(t["qweight"], bits, i) - zeros[:, g]))
    return torch.stack(columns, 1)


def stored(root: Path, site: str) -> dict[str, Tensor]:
    every = load_file(root / "model.safetensors")
    return {n.removeprefix(f"{site}."): t for n, t in every.items() if n.startswith(f"{site}.")}


SITE = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_words_mean_what_the_card_says(bits: int, symmetric: bool, tiny_llama, tmp_path):
    small, _ = bitwright.compress(tiny_llama(), recipe(bits, symmetric), out=tmp_path / "m", form="gptq")
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    v1 = symmetric and bits != 3
    assert config["checkpoint_format"] == ("gptq" if v1 else "gptq_v2") and config["sym"] == symmetric
    found = gptq_weight(stored(tmp_path / "m", SITE), bits, v1)
    assert torch.equal(found, small.get_submodule(SITE).weight)


def test_groups_in_activation_order_are_told_by_g_idx(tiny_llama, tokens, tmp_path):
    by_order = recipe(4, True, rounding=GPTQ("descending", "dynamic"))
    small, _ = bitwright.compress(tiny_llama(), by_order, tokens(), out=tmp_path / "m", form="gptq")
    t = stored(tmp_path / "m", SITE)
    assert t["g_idx"].diff().min() < 0 and t["g_idx"].bincount().unique().tolist() == [GROUP]
    assert torch.equal(gptq_weight(t, 4, True), small.get_submodule(SITE).weight)


def test_a_zero_point_of_the_first_format_is_one_more_than_stored(tiny_llama, tmp_path):
    """The same tensors under the other convention are other weights: both are read as they were meant."""
    bitwright.compress(tiny_llama(), recipe(4, True), out=tmp_path / "m", form="gptq")
    every, path = load_file(tmp_path / "m" / "model.safetensors"), tmp_path / "m" / "config.json"
    before = Gptq().open(tmp_path / "m").terms(SITE)[0].decode()
    config = json.loads(path.read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    path.write_text(json.dumps(config))
    (tmp_path / "m" / "bitwright.json").unlink()
    save_file({n: t + 0x11111111 if "qzeros" in n else t for n, t in every.items()}, tmp_path / "m" / "model.safetensors")
    assert torch.equal(Gptq().open(tmp_path / "m").terms(SITE)[0].decode(), before)


@pytest.mark.parametrize("symmetric", [False, True])
def test_awq_words_are_those_of_another_reader(symmetric: bool, tiny_llama, tmp_path):
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    small, _ = bitwright.compress(tiny_llama(), recipe(4, symmetric), out=tmp_path / "m", form="awq")
    t, kind = stored(tmp_path / "m", SITE), converters.AutoAWQConverter
    codes, zeros = kind.reverse_awq_order(*kind.unpack_awq(t["qweight"], t["qzeros"], 4), 4)
    parts = (codes & 15).T.reshape(t["scales"].shape[1], -1, GROUP).float() - (zeros & 15).T[..., None].float()
    found = (parts * t["scales"].T[..., None].float()).flatten(1)
    assert torch.equal(found, small.get_submodule(SITE).weight)


def test_formats_convert_into_each_other_where_both_hold_the_codes(tiny_llama, tmp_path):
    small, _ = bitwright.compress(tiny_llama(), recipe(4), out=tmp_path / "gptq", form="gptq")
    chain = ["awq", "compressed-tensors", "native", "gptq"]
    here = tmp_path / "gptq"
    for i, form in enumerate(chain):
        convert(here, form, tmp_path / f"{i}-{form}")
        here = tmp_path / f"{i}-{form}"
    back, ids = bitwright.load(here), torch.randint(0, 96, (2, 16))
    assert torch.equal(back.get_submodule(SITE).weight, small.get_submodule(SITE).weight)
    with torch.no_grad():
        assert torch.equal(back(ids).logits, small(ids).logits)


@pytest.mark.parametrize(
    "form, recipe, words",
    [
        ("awq", recipe(3), "3 bits"),
        ("gptq", recipe(5), "5 bits"),
        ("gptq", recipe(4, layout=Layout(32, 32)), "span rows"),
        ("awq", bitwright.recipes.get("w4a16")(group=32), "float16"),
        ("gptq", bitwright.recipes.ptqtp(group=32), "integer grid"),
        ("gptq", bitwright.recipes.get("w8a8")(scale="float16", rounding="nearest"), "leave out activations"),
        ("gptq", recipe(4, rules=(bitwright.Rule("re:.*mlp.*", grid=Integer(256)),)), "one width"),
    ],
)
def test_what_a_format_cannot_hold_is_one_sentence(form, recipe, words, tiny_llama, tokens, tmp_path):
    with pytest.raises(BadRequest, match=words):
        bitwright.compress(tiny_llama(), recipe, tokens(), out=tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


def test_groups_that_are_not_equally_large_are_refused(tiny_llama, tokens, tmp_path):
    by_order = recipe(4, True, rounding=GPTQ("descending", "dynamic"))
    bitwright.compress(tiny_llama(), by_order, tokens(), out=tmp_path / "m", form="gptq")
    every = load_file(tmp_path / "m" / "model.safetensors")
    for wrong in (torch.zeros(96), torch.full((96,), 99), torch.full((96,), -1)):
        every[f"{SITE}.g_idx"] = wrong.to(torch.int32)
        save_file(every, tmp_path / "m" / "model.safetensors")
        with pytest.raises(BadRequest, match="g_idx"):
            Gptq().open(tmp_path / "m").terms(SITE)
    assert not Awq().recognises(tmp_path / "m")
