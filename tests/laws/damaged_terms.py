"""Terms that do not make a matrix, in files that are well formed: places of which a fuzzer (tests/fuzz/) found the first."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import bitwright
from bitwright.errors import BadRequest
from bitwright.export.base import open_compressed
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.terms.base import decode, spec
from bitwright.terms.coded import coded_meta

CODED = coded_meta((8, 8), Integer(16), Layout(1, 8))
COLUMNS = {"kind": "columns", "shape": [8, 8], "count": 2}
SPARSE = {"kind": "sparse", "shape": [8, 8], "count": 2}


def native(root: Path, metas: Sequence[Any], **filled: Sequence[int]) -> Path:
    """A directory of one matrix `m`; its tensors are zeros, but those that are given by their last name."""
    specs = {f"m.terms.{i}.{leaf}": told for i, meta in enumerate(metas) for leaf, told in spec(meta).items()}

    def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        leaf = name.rpartition(".")[2]
        return torch.tensor(filled[leaf], dtype=dtype) if leaf in filled else torch.zeros(shape, dtype=dtype)

    save_file({name: tensor(name, *told) for name, told in specs.items()}, root / "model.safetensors")
    told = {"quant_method": "bitwright", "format": 1, "kinds": [metas], "sites": {"m": 0}, "tied_head": None}
    (root / "config.json").write_text(json.dumps({"quantization_config": told}))
    return root


@pytest.mark.parametrize(
    "metas",
    [
        [{"kind": "columns", "shape": [8, 2**40], "count": 1}],
        [{"kind": "low_rank", "shape": [2**20, 2**20], "rank": 1, "dtype": "int8"}],
        [coded_meta((8, 2**40), Integer(16), Layout(1, 8), columns=8)],
        [CODED, {"kind": "columns", "shape": [8, 2**40], "count": 1}],
        [CODED, {"kind": "sign_lowrank", "shape": [8, 16], "rank": 1}],
    ],
    ids=["columns", "factors", "some inputs", "two shapes", "signs of another shape"],
)
def test_terms_that_claim_more_than_is_stored_are_refused(metas: list[Any], tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="a code for every weight"):
        open_compressed(native(tmp_path, metas))


@pytest.mark.parametrize(
    "metas, filled, sound",
    [
        ([CODED, COLUMNS], {"places": [0, 7]}, True),
        ([CODED, COLUMNS], {"places": [0, 8]}, False),
        ([CODED, COLUMNS], {"places": [-1, 7]}, False),
        ([CODED, SPARSE], {"ends": [0, 0, 1, 1, 1, 1, 1, 2], "columns": [0, 7]}, True),
        ([CODED, SPARSE], {"ends": [0, 0, 1, 1, 1, 1, 1, 2], "columns": [0, 8]}, False),
        ([CODED, SPARSE], {"ends": [0, 0, 1, 1, 1, 1, 1, 3], "columns": [0, 7]}, False),
        ([CODED, SPARSE], {"ends": [0, 0, 3, 1, 1, 1, 1, 2], "columns": [0, 7]}, False),
        ([coded_meta((8, 8), Integer(16), Layout(1, 8), columns=8)], {"columns": [7, 6, 5, 4, 3, 2, 1, 0]}, True),
        ([coded_meta((8, 8), Integer(16), Layout(1, 8), columns=8)], {"columns": [7, 6, 5, 4, 3, 2, 1, 2**30]}, False),
    ],
)
def test_places_outside_a_matrix_are_named(metas: list[Any], filled: dict[str, list[int]], sound: bool, tmp_path: Path) -> None:
    opened = open_compressed(native(tmp_path, metas, **filled))
    if sound:
        assert decode(opened.terms("m")).shape == (8, 8)
        return
    with pytest.raises(BadRequest, match="places that its matrix does not have"):
        opened.terms("m")


def test_a_model_is_not_loaded_past_the_checks(tiny_llama, tmp_path):
    """transformers reads native directories too; what terms claim is asked there as it is everywhere."""
    bitwright.compress(tiny_llama(), bitwright.recipes.rtn(group=32), out=tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    for kind in config["quantization_config"]["kinds"]:
        kind[0]["columns"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(BadRequest, match="a code for every weight"):
        bitwright.load(tmp_path / "m")
