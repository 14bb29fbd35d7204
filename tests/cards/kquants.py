"""Card formats, section 3, "scale search": the fit of K-quants, llama.cpp's own codes bit for bit, and the presets of its names."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.grids.base import Grid
from bitwright.grids.fit import AbsMax, importance
from bitwright.grids.integer import Integer
from bitwright.grids.least_squares import LeastSquares
from bitwright.grids.offset import Offset
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.recipes.presets_gguf import GGUF, MIXTURES
from bitwright.rounding.chain import Chain
from bitwright.rounding.ggml import Ggml
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase
from bitwright.terms.base import decode, stored_bits
from bitwright.terms.coded import Coded

KQUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
TYPES = (*KQUANTS, *SIMPLE)


def preset(name: str) -> Any:
    return GGUF["mxfp4-gguf" if name == "MXFP4" else name.lower().replace("_", "-")]


def weights(rows: int = 24, inp: int = 512) -> tuple[Tensor, Tensor]:
    """Heavy-tailed weights, some rows of zeros or of one value; second moments over three decades."""
    W = torch.randn(rows, inp) * (0.3 + torch.randn(rows, inp).abs()) / 20
    W[0], W[1], W[2, :256], W[3] = 0, 0.03, -0.01, -W[3].abs()
    return W, 10 ** (3 * torch.rand(inp))


def fitted(grid: Grid, layout: Layout, W: Tensor, d: Tensor | None) -> Coder:
    return Coder.fit(W, [Band(grid, layout)], d)


def packed(name: str, term: Coded) -> Tensor:
    """The term as the blocks of a file."""
    block, rows = BLOCKS[name], term.shape[0]
    leaves = {"codes": term.codes}
    for leaf, values in term.params.items():
        kept = values.view(rows, -1)
        leaves[leaf] = kept[:, :: block.weights // block.group] if leaf.endswith("_top") else kept
    if getattr(term.grid.scale, "signed", False) and name in KQUANTS:
        leaves["scale"] = leaves["scale"].int().sub(term.grid.scale.zero).to(torch.int8)
    if name in ("Q4_1", "Q5_1"):
        leaves["min"] = -leaves["min"]
    if name == "Q8_0":
        leaves["codes"] = leaves["codes"] + 1
    if name == "MXFP4":
        value = term.codes.int() - 7
        leaves["codes"] = torch.where(value < 0, 8 - value, value).to(torch.uint8)
    return block.pack(leaves)


# --- the fit -----------------------------------------------------------------------------------------------------------------

PRICES = ("diagonal", "imatrix", "even")


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("name", [n for n in TYPES if n not in ("MXFP4", "TQ2_0")])
def test_no_block_is_worse_than_under_the_range_of_the_largest_weight(name: str, price: str):
    found, (W, d) = preset(name), weights()
    split = found.layout.split
    x, weight = split(W), split(d.expand(W.shape))
    a = {"diagonal": weight, "imatrix": importance(x, weight), "even": torch.ones_like(x)}[price]

    def loss(by: Any) -> Tensor:
        (term,) = fitted(replace(found.grid, by=by), found.layout, W, d).terms(W)
        return (split(term.decode() - W).square() * a).view(-1, max(256, x.shape[1])).sum(1)

    ours, widest = loss(LeastSquares(price)), loss(AbsMax())
    assert (ours <= widest * (1 + 1e-5) + 1e-12).all()
    assert ours.sum() < 0.95 * widest.sum()


@pytest.mark.parametrize("name", TYPES)
def test_what_a_block_stores_is_what_it_was_rounded_to_and_bits_are_those_of_the_table(name: str):
    found, (W, d) = preset(name), weights()
    for grid in (found.grid, found.searched):
        coder = fitted(grid, found.layout, W, d)
        (term,) = coder.terms(W)
        again = coder.terms(term.decode())
        assert torch.equal(decode(again), term.decode())
        assert Coded.spec(term.meta()).keys() == term.tensors().keys()
        block = BLOCKS[name]
        size = W.numel() * 8 * block.bytes // block.weights
        stored = stored_bits((term,))
        assert stored == size or (name.startswith("TQ") and stored < size)  # five trits a byte, and no tails
        values = block.decode(block.unpack(packed(name, term)))
        assert torch.equal(values, term.decode())


def test_scales_turn_the_points_round_where_that_is_better():
    """-4 .. 3: a row whose largest weight is positive is best met by a negative scale."""
    x = torch.tensor([[4.0, 3, 2, 1, 0, -1, -2, -3] * 2]).repeat(1, 16)
    q3 = preset("Q3_K").searched
    for W in (x, -x):
        (term,) = fitted(replace(q3, by=LeastSquares("even")), Layout(1, 16), W, None).terms(W)
        assert (term.decode() - W).abs().max() < 0.02
    q4 = preset("Q4_0")
    W = torch.arange(-7, 9).float().repeat(2)[None]
    coder = fitted(replace(q4.grid, by=LeastSquares("even")), q4.layout, W, None)
    assert torch.equal(decode(coder.terms(W)), W) and coder.params[0]["scale"].item() == -1


def test_groups_fitted_again_keep_what_they_share_and_are_placed_as_at_first():
    W, d = weights()
    for name in KQUANTS:
        found = preset(name)
        coder = fitted(found.searched, found.layout, W, d)
        again = coder.refit(W, torch.tensor([found.layout.cols or 0]))
        assert all(torch.equal(coder.params[0][leaf], again.params[0][leaf]) for leaf in coder.params[0])


def test_grids_that_are_not_equally_spaced_are_refused():
    for make in (lambda: Table("nf4", LeastSquares()), lambda: Integer(16, False, LeastSquares())):
        with pytest.raises(BadRequest, match="equally spaced"):
            make()
    with pytest.raises(BadRequest, match="same groups"):
        Offset(4, LeastSquares(), preset("Q2_K").grid.scale)


@pytest.mark.parametrize("name", KQUANTS)
def test_roundings_that_see_the_data_gain_on_top(name: str, problem):
    W, H = problem(24, 256)
    found = preset(name)
    coder = fitted(found.searched, found.layout, W, H.diagonal())
    known = Known({"gram": H})

    def loss(terms: Any) -> float:
        E = W - decode(terms)
        return float((E @ H * E).sum())

    nearest, gptq = loss(coder.terms(W)), loss(GPTQ()(W, coder, known))
    assert loss(Chain((GPTQ(), QuantEase(iters=3)))(W, coder, known)) <= gptq * (1 + 1e-6)
    assert gptq < nearest


# --- llama.cpp's own codes ---------------------------------------------------------------------------------------------------


def many() -> Tensor:
    """More than a million weights: bell, heavy tails, both as bf16, zeros, one value, halves of a step, negatives only."""
    bell, heavy = torch.randn(512, 1024), torch.randn(512, 1024) * torch.randn(512, 1024).square() / 10
    special = torch.zeros(8, 1024)
    special[1], special[2], special[3] = 0.37, -0.37, torch.arange(1024) % 17 / 2 - 4
    special[4], special[5] = -torch.rand(1024) - 0.5, torch.rand(1024) + 0.5
    special[6, ::50], special[7] = -2.0, torch.randn(1024) * 1e-5
    return torch.cat([bell, heavy, bell.bfloat16().float(), heavy.bfloat16().float() * 0.05, special])


@pytest.mark.parametrize("name", SIMPLE)
def test_the_bytes_are_those_of_llama_cpp(name: str):
    gguf = pytest.importorskip("gguf")
    found, W = preset(name), many()
    (term,) = Ggml()(W, fitted(found.grid, found.layout, W, None), Known())
    theirs = gguf.quants.quantize(W.numpy(), gguf.GGMLQuantizationType[name])
    assert packed(name, term).numpy().tobytes() == np.ascontiguousarray(theirs).tobytes()
    values = torch.from_numpy(np.array(gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType[name])))
    assert torch.equal(term.decode(), values.view(W.shape))
    again = Coder(term.shape, (Band(term.grid, term.layout),), (term.params,)).terms(term.decode())
    assert torch.equal(decode(again), term.decode())


def test_other_grids_are_refused_before_anything_is_read():
    for grid, layout in ((Integer(16), Layout(1, 32)), (preset("Q4_0").grid, Layout(1, 64)), (preset("Q4_K").grid, Layout(1, 32))):
        with pytest.raises(BadRequest, match="Q4_0, Q5_0"):
            Ggml().metas((4, 256), [Band(grid, layout)])


# --- presets -----------------------------------------------------------------------------------------------------------------


def test_presets_answer_to_the_names_of_llama_cpp():
    for name in (*(n for n in TYPES if n != "MXFP4"), "MXFP4-GGUF"):
        for rounding in ("nearest", "imatrix", "gptq", "best"):
            recipe = recipes.get(name)(rounding=rounding)
            assert bitwright.Recipe.from_dict(recipe.to_dict()) == recipe
            assert recipe.needs == (() if rounding == "nearest" else ("gram",))
    with pytest.raises(BadRequest, match="imatrix"):
        recipes.get("Q4_K")(rounding="best of all")
    with pytest.raises(BadRequest, match="blocks"):
        recipes.get("Q4_K_M")()


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_give_some_matrices_more_bits(name: str):
    """Of 32 blocks, as llama.cpp does for Llama: Q4_K_M and Q5_K_M half of v and down, the others as the docstring says."""
    recipe = recipes.get(name)(rounding="nearest", blocks=32)
    layers = [
        f"model.layers.{i}.{m}"
        for i in range(32)
        for m in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    ]
    levels = {n: recipe.of(n).grid.levels for n in layers}
    base = recipe.grid.levels
    assert all(v == base for n, v in levels.items() if "q_proj" in n)
    richer = {m: sum(v > base for n, v in levels.items() if m in n) for m in ("v_proj", "o_proj", "down_proj")}
    assert (
        richer
        == {
            "q3-k-m": {"v_proj": 32, "o_proj": 32, "down_proj": 32},
            "q3-k-l": {"v_proj": 32, "o_proj": 32, "down_proj": 32},
            "q4-k-s": {"v_proj": 4, "o_proj": 0, "down_proj": 4},
            "q4-k-m": {"v_proj": 16, "o_proj": 0, "down_proj": 16},
            "q5-k-m": {"v_proj": 16, "o_proj": 0, "down_proj": 16},
        }[name]
    )


# --- the whole road ----------------------------------------------------------------------------------------------------------


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K"])
def test_on_a_model_data_helps_and_bits_are_those_of_the_table(name: str):
    text = bitwright.calibration("zoo:lm", samples=32)
    error = {}
    for rounding in ("nearest", "imatrix", "best"):
        _, report = bitwright.compress("zoo:lm", recipes.get(name)(rounding=rounding), text if rounding != "nearest" else None)
        block = BLOCKS[name]
        assert report.bpw_linears == pytest.approx(8 * block.bytes / block.weights, rel=1e-9)
        error[rounding] = sum(row.error for row in report.rows) / len(report.rows)
    assert error["best"] < 0.9 * error["imatrix"]
