"""Files that others wrote, or that a disk or a network spoiled: a reader opens them or says in one sentence why not. Nothing else,
and nothing larger than the file by more than a constant."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bitwright
from bitwright import recipes
from bitwright.checkpoint import SHARDED, open_checkpoint, weight_files
from bitwright.errors import BadRequest
from bitwright.export.base import open_compressed
from bitwright.export.gptq import order
from bitwright.grids.integer import Integer
from bitwright.index import from_dict
from bitwright.layout import Layout
from bitwright.ledger import ledger
from bitwright.recipe import Recipe
from bitwright.terms.pack import octets

FORMATS = {
    "native": recipes.get("nvfp4"),
    "compressed-tensors": recipes.get("w4a8"),
    "gptq": lambda **_: Recipe(Integer(16), Layout(1, 32)),
    "awq": lambda **_: Recipe(Integer(16), Layout(1, 32)),
}
Damage = Callable[[Path], None]


@pytest.fixture(scope="module", params=FORMATS)
def whole(request, tiny_llama, tokens, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "m"
    group = {"compressed-tensors": 32}.get(request.param)
    recipe = FORMATS[request.param](rounding="nearest", group=group)
    bitwright.compress(tiny_llama(num_hidden_layers=1), recipe, tokens(), out=root, form=request.param)
    for path in root.glob("bitwright.*"):  # as another tool would leave it
        path.unlink()
    return root


def survives(root: Path) -> bool:
    """Reads everything; whether it could."""
    size = sum(p.stat().st_size for p in root.iterdir())
    try:
        opened = open_compressed(root)
        ledger(root)
        for site in opened.model.metas:
            for term in opened.terms(site):
                assert 4 * term.decode().numel() <= 64 * size
            opened.scales(site)
        for name in opened.model.kept:
            opened.tensor(name)
    except BadRequest as why:
        assert "\n" not in str(why) and str(why).endswith(".")
        return False
    return True


def damaged(whole: Path, tmp: Path, damage: Damage) -> bool:
    root = tmp / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    damage(root)
    return survives(root)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for k, v in inner for p in places(v, (*at, k)))]


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([2**31, 2**63, 10**30, 1e308, -1]), st.text(max_size=8),
    st.lists(st.integers(-2, 300), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_what_is_whole_is_read(whole: Path):
    assert survives(whole)


@SLOW
@given(st.data())
def test_a_configuration_of_any_content(whole: Path, tmp_path: Path, data):
    config = json.loads((whole / "config.json").read_text())
    place = data.draw(st.sampled_from(places(config["quantization_config"])[1:]))
    drop, odd = data.draw(st.booleans()), data.draw(ODD)

    def damage(root: Path) -> None:
        part = config["quantization_config"]
        for key in place[:-1]:
            part = part[key]
        if drop and isinstance(part, dict):
            del part[place[-1]]
        else:
            part[place[-1]] = odd
        (root / "config.json").write_text(json.dumps(config))

    damaged(whole, tmp_path, damage)


@SLOW
@given(st.data())
def test_weights_of_any_bytes(whole: Path, tmp_path: Path, data):
    """Cut anywhere, or with bytes changed: in the header, whose sizes then lie, or in the data."""
    path = sorted(whole.glob("*.safetensors"))[0].name
    size = (whole / path).stat().st_size
    cut = data.draw(st.integers(0, size - 1)) if data.draw(st.booleans()) else None
    head = 8 + int.from_bytes((whole / path).read_bytes()[:8], "little")
    changes = data.draw(st.lists(st.tuples(st.integers(0, data.draw(st.sampled_from([8, head, size])) - 1), st.integers(0, 255))))

    def damage(root: Path) -> None:
        raw = bytearray((root / path).read_bytes())
        for at, byte in changes:
            raw[at] = byte
        (root / path).write_bytes(raw[:cut])

    assert not damaged(whole, tmp_path, damage) or cut is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read"),
        ("[]", "is not a configuration"),
        ('{"quantization_config": {"quant_method": "bitsandbytes"}}', "quantized by the method 'bitsandbytes'"),
        ('{"quantization_config": {}}', "quantized by the method 'None'"),
        ("{}", "not a compressed model"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "cannot be read"),
    ],
)
def test_each_kind_of_damage_is_named(text: str, words: str, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadRequest, match=words):
        open_compressed(tmp_path)


@pytest.mark.parametrize("text", ["[]", "7", "{", '{"report": []}', '{"report": {"bytes": "many"}}', '{"report": {"bytes": {}}}'])
def test_a_report_that_is_none_is_named(text: str, whole: Path, tmp_path):
    def damage(root: Path) -> None:
        (root / "bitwright.json").write_text(text)

    assert not damaged(whole, tmp_path, damage)
    with pytest.raises(BadRequest, match=r"bitwright\.json.*; remove it"):
        ledger(tmp_path / "damaged")


PLAIN = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}


@pytest.mark.parametrize("config", [[], 7, {}, PLAIN | {"hidden_size": "x"}, PLAIN | {"num_attention_heads": 7},
    PLAIN | {"num_attention_heads": 0}, PLAIN | {"model_type": []}, PLAIN | {"dtype": "xx"}, PLAIN | {"quantization_config": 5},
    PLAIN | {"rope_parameters": 7}], ids=str)  # fmt: skip
def test_a_configuration_that_transformers_does_not_take_is_named(config: Any, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest, match="no model configuration that transformers knows"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("shards", [[], {"a": 1}, {"a": "../model.safetensors"}, {"a": "/dev/null"}, {"a": [], "b": "x"}], ids=str)
def test_an_index_that_names_no_file_beside_it_is_damaged(shards: Any, tmp_path):
    (tmp_path / SHARDED).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(BadRequest, match="is damaged"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "g_idx", [[0] * 8, [0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 2**31 - 1], [-1, 0, 0, 0, 1, 1, 1, 1], [[0] * 4] * 2]
)
def test_groups_that_are_not_equally_large_take_no_room(g_idx: list):
    """A group number may name any of 2^31 groups: it is compared before anything of that size is made."""
    with pytest.raises(BadRequest, match="g_idx"):
        order(torch.tensor(g_idx, dtype=torch.int32), 2, 8)


@pytest.mark.parametrize("planes", [0, -1, 11, 2**53])
def test_a_power_of_a_number_from_a_file_is_not_taken(planes: int, within):
    with within(1), pytest.raises(BadRequest, match=r"1 to 10 planes.*choose"):
        from_dict({"use": "trit-planes", "planes": planes})


def test_columns_of_one_word_are_read():
    """Whose stride may be anything."""
    words = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    assert octets(words.T).tolist() == [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]]
