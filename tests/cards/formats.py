"""Card formats: the values of the scalar lattices, exact packing at every width, the bits that a block really takes.

Of the card's formats the scalar lattices exist, and the dense packing that compressed-tensors and GPTQ checkpoints share.
Blocks of llama.cpp are counted here as our terms store the same block; its bytes are the exporter's business.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.coder import Band, Coder
from bitwright.grids.base import Grid, points
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float as Scaled
from bitwright.grids.table import TABLES, Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.layout import Layout
from bitwright.terms import pack
from bitwright.terms.base import stored_bits


def row(*values: float) -> Tensor:
    return torch.tensor([values])


# --- scalar lattices ---------------------------------------------------------------------------------------------------------


def minifloat(exponent: int, mantissa: int, bias: int) -> list[float]:
    """The non-negative values of a small float without inf and NaN, from its definition."""
    steps = range(2**mantissa)
    small = [m / 2**mantissa * 2.0 ** (1 - bias) for m in steps]
    return small + [(1 + m / 2**mantissa) * 2.0 ** (e - bias) for e in range(1, 2**exponent) for m in steps]


def test_e2m1_is_the_small_float_of_two_exponent_bits_and_one_of_mantissa():
    positive = minifloat(2, 1, bias=1)
    assert positive == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert [v for (v,) in TABLES["e2m1"]] == sorted({*positive, *(-v for v in positive)})  # -0 is 0


def test_small_floats_are_those_of_the_card_and_of_torch() -> None:
    """FP6 as the card lists them; FP8 is every finite number of torch's types, and rounding to nearest agrees with their casts."""
    e3m2 = [
        *(i / 16 for i in range(8)),
        *(i / 8 for i in range(4, 8)),
        *(i / 4 for i in range(4, 8)),
        *(i / 2 for i in range(4, 8)),
    ]
    e3m2 += [*(float(i) for i in range(4, 8)), *(2.0 * i for i in range(4, 8)), *(4.0 * i for i in range(4, 8))]
    e2m3 = [*(i / 8 for i in range(16)), *(2 + i / 4 for i in range(8)), *(4 + i / 2 for i in range(8))]
    for name, positive in (("e3m2", e3m2), ("e2m3", e2m3)):
        assert [v for (v,) in TABLES[name] if v >= 0] == positive
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        known = torch.arange(256, dtype=torch.uint8).view(dtype).double()
        assert [v for (v,) in TABLES[name]] == sorted(set(known[known.isfinite()].tolist()))
        x = torch.randn(1, 4096).clamp(-6, 6) * torch.finfo(dtype).max / 8
        unit = {"scale": torch.ones(1, 1)}
        grid = Table(name, scale=Scaled("float32"))
        assert torch.equal(grid.decode(grid.encode(x, unit), unit), x.to(dtype).float())


def test_nf4_is_quantiles_of_a_gaussian_stretched_to_one():
    """Eight of the right half and seven of the left, evenly spaced in probability from 1/2 to 1 - (1/32 + 1/30) / 2, and 0."""
    from scipy.stats import norm

    top = 1 - (1 / 32 + 1 / 30) / 2
    right, left = (norm.ppf(np.linspace(top, 0.5, n + 1)[:-1]) / norm.ppf(top) for n in (8, 7))
    assert [v for (v,) in TABLES["nf4"]] == pytest.approx(sorted([*right, 0.0, *-left]), abs=1e-6)


@pytest.mark.parametrize("table", ["nf4", "e2m1", "e3m2", "e4m3", "ternary", "binary"])
def test_a_number_goes_to_the_side_of_the_midpoint_it_lies_on(table: str):
    values = torch.tensor([v for (v,) in TABLES[table]])
    assert (values.diff() > 0).all() and values.abs().max() == values.max()
    p, middle = {"scale": row(1.0).half()}, (values[1:] + values[:-1]) / 2
    below, above = (Table(table).encode((middle * one)[None], p)[0] for one in (1 - 1e-5 * middle.sign(), 1 + 1e-5 * middle.sign()))
    inner = middle != 0
    assert torch.equal(below[inner].long(), torch.arange(len(middle))[inner])
    assert torch.equal(above[inner].long(), torch.arange(len(middle))[inner] + 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_follow_the_zero_point_rule_of_the_gptq_family(bits: int):
    """s = (max - min) / M after the range is widened to 0, z = round(-min / s); symmetric s = 2 amax / M, z = 2^(b-1)."""
    M = 2**bits - 1
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -0.25)):
        x, grid = row(low, high, (low + high) / 2), Integer(2**bits)
        p, wide = grid.fit(x), (min(low, 0), max(high, 0))
        assert p["scale"].item() == torch.tensor((wide[1] - wide[0]) / M).half().item()
        assert p["zero"].item() == round(-wide[0] / p["scale"].item())
        back = p["scale"].float() * (grid.encode(x, p).float() - p["zero"].float())
        assert torch.equal(grid.decode(grid.encode(x, p), p), back)
        assert (back - x).abs().max() <= p["scale"].float().item() * 0.51
        assert 0 in points(grid, p)
    symmetric = Integer(2**bits, symmetric=True)
    p = symmetric.fit(row(-3.0, 1.0))
    assert p["scale"].item() == torch.tensor(6 / M).half().item()
    assert torch.equal(points(symmetric, p)[0, :, 0], p["scale"].float()[0] * (torch.arange(M + 1) - 2 ** (bits - 1)))


# --- 1. packing --------------------------------------------------------------------------------------------------------------


def digits(levels: int, rows: int, count: int) -> Tensor:
    return torch.randint(0, levels, (rows, count), dtype=torch.int32)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 27, 32, 64, 81, 128, 243, 255, 256, 257, 512, 4096, 65536])
def test_every_ragged_tail_comes_back(levels: int):
    for count in range(1, 3 * pack.word(levels)[0] + 2):
        codes = digits(levels, 3, count)
        assert torch.equal(pack.unpack(pack.pack(codes, levels), levels, count).int(), codes)


@settings(max_examples=60)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=90))
def test_powers_of_two_are_the_words_of_compressed_tensors(bits: int, drawn: Sequence[int]):
    """Element i starts at bit i b of the row's little-endian stream, crossing words: read here bit by bit from one number."""
    values = [v % 2**bits for v in drawn]
    data = bytes(pack.pack(torch.tensor([values]), 2**bits)[0].tolist())
    number = int.from_bytes(data, "little")
    assert [number >> bits * i & 2**bits - 1 for i in range(len(values))] == values
    assert number >> bits * len(values) == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fields_of_a_gptq_word_lie_at_multiples_of_the_width(bits: int):
    codes = digits(2**bits, 2, 64)
    words = pack.pack(codes, 2**bits).numpy().view("<u4")  # int32 words of four of our bytes
    per = 32 // bits
    for r, j in product(range(2), range(64)):
        assert int(words[r, j // per]) >> bits * (j % per) & 2**bits - 1 == codes[r, j]


def test_three_bits_are_32_codes_in_3_words_of_which_two_straddle():
    def words(place: int) -> list[int]:
        codes = torch.zeros(1, 32, dtype=torch.int32)
        codes[0, place] = 7
        return [int(w) for w in pack.pack(codes, 8).numpy().view("<u4")[0]]

    assert words(10) == [0b11 << 30, 1, 0] and words(21) == [0, 1 << 31, 0b11]
    assert all(sum(w != 0 for w in words(i)) == 1 for i in range(32) if i not in (10, 21))


# --- 2. bits that are stored -------------------------------------------------------------------------------------------------

# the card's blocks: our grid of the same points, weights in a block, bits per weight
BLOCKS: dict[str, tuple[Grid, int, float]] = {
    "Q1_0": (Table("binary"), 128, 1.125),
    "TQ1_0": (Table("ternary"), 256, 1.6875),
    "Q2_0": (Integer(4, symmetric=True), 64, 2.25),
    "Q4_0": (Integer(16, symmetric=True), 32, 4.5),
    "IQ4_NL": (Table("nf4"), 32, 4.5),
    "Q8_0": (Integer(256, symmetric=True), 32, 8.5),
    "GPTQ 3 bits, groups of 128": (Integer(8), 128, 3 + (16 + 3) / 128),
    "GPTQ 4 bits, groups of 128": (Integer(16), 128, 4 + (16 + 4) / 128),
    "PTQTP on a word of five": (TritPlanes(2), 640, 3.2 + 32 / 640),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_bits_per_weight_are_bytes_over_weights_and_those_of_the_table(name: str):
    grid, block, bits = BLOCKS[name]
    inp = 8 * block if isinstance(grid, Integer) else block  # packed zero points fill whole bytes in rows of 8 groups
    W = torch.randn(4, inp)
    terms = Coder.fit(W, [Band(grid, Layout(1, block))]).terms(W)
    written = sum(t.numel() * t.element_size() for term in terms for t in term.tensors().values())
    assert stored_bits(terms) == 8 * written
    assert 8 * written / W.numel() == pytest.approx(bits, rel=1e-12)
