"""Card formats, section 3: the blocks of llama.cpp, judged by the `gguf` library: the same bytes, the same floats, bit for bit."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.blocks.base import Block, Leaves
from bitwright.export.gguf.types import KINDS

gguf = pytest.importorskip("gguf")

CODED = [name for name, block in BLOCKS.items() if block.levels]
QUANTIZED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]

# the table of the card
BITS = {
    "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "TQ1_0": 1.6875, "TQ2_0": 2.0625, "MXFP4": 4.25, "NVFP4": 4.5,
    "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
    "F32": 32, "F16": 16, "BF16": 16,
}  # fmt: skip

# where a block holds half floats
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0], "TQ1_0": [52], "TQ2_0": [64],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
}  # fmt: skip


def noise(block: Block, rows: int = 5, blocks: int = 3, sane: bool = True) -> Tensor:
    """Random bytes; `sane`: every half float in them is finite."""
    data = torch.randint(0, 256, (rows, blocks, block.bytes), dtype=torch.uint8)
    for at in HALVES.get(block.name, []) if sane else []:
        values = (torch.randn(rows, blocks, 1) * 10.0 ** torch.randint(-6, 4, (rows, blocks, 1))).half()
        data[..., at : at + 2] = values.view(torch.uint8)
    if block.name == "TQ1_0":
        data[..., :52] = torch.cat([fractions(5)[torch.randint(0, 243, (rows, blocks, 48))], digits(rows, blocks)], -1)
    return data.flatten(1)


def fractions(count: int) -> Tensor:
    """The bytes of all words of `count` trits."""
    return torch.tensor([-(-256 * v * 3 ** (5 - count) // 243) for v in range(3**count)], dtype=torch.uint8)


def digits(rows: int, blocks: int) -> Tensor:
    return fractions(4)[torch.randint(0, 81, (rows, blocks, 4))]


def library(name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


def theirs(name: str, data: Tensor) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return gguf.quants.dequantize(data.numpy(), library(name))


def same(a: Leaves, b: Leaves) -> bool:
    """Bit for bit: NaN equals the same NaN."""
    as_bytes = [
        {n: (x.dtype, x.shape, x.contiguous().view(torch.uint8).numpy().tobytes()) for n, x in leaves.items()} for leaves in (a, b)
    ]
    return as_bytes[0] == as_bytes[1]


@pytest.mark.parametrize("name", BLOCKS)
def test_types_are_those_of_the_library_and_bits_those_of_the_table(name: str):
    block = BLOCKS[name]
    assert (block.weights, block.bytes) == gguf.GGML_QUANT_SIZES[library(name)] == KINDS[name][1:]
    assert block.name == name and block.id == library(name) == KINDS[name].id
    assert 8 * block.bytes / block.weights == BITS[name]
    assert set(BITS) == set(BLOCKS)


def test_every_type_whose_bytes_can_be_found_has_the_size_of_the_library():
    sizes = {kind.name: (int(kind), *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {n: tuple(kind) for n, kind in KINDS.items()} == {n: sizes[n] for n in KINDS}


@pytest.mark.parametrize("name", CODED)
def test_any_bytes_decode_to_the_floats_of_the_library(name: str):
    block = BLOCKS[name]
    for rows, blocks in ((7, 3), (1, 1), (40, 4)):
        data = noise(block, rows, blocks)
        ours = block.decode(block.unpack(data))
        assert ours.dtype == torch.float32 and ours.numpy().tobytes() == theirs(name, data).tobytes()  # the signs of zeros too


@pytest.mark.parametrize("name", CODED)
def test_leaves_have_the_shapes_and_ranges_that_are_promised(name: str):
    block = BLOCKS[name]
    leaves = block.unpack(noise(block, rows=50))
    assert leaves["codes"].dtype == torch.uint8 and leaves["codes"].shape == (50, 3 * block.weights)
    assert int(leaves["codes"].min()) == 0 and int(leaves["codes"].max()) == block.levels - 1
    groups = 3 * block.weights // block.group
    for leaf in {"scale", "min"} & set(leaves):
        assert leaves[leaf].shape == (50, groups)
    for leaf in {"scale_top", "min_top"} & set(leaves):
        assert leaves[leaf].shape == (50, 3) and leaves[leaf].dtype == torch.float16
    assert ("min" in leaves) == (name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
    assert ("scale_top" in leaves) == (name.endswith("_K") or name == "IQ4_XS")
    ranges = {"Q2_K": (0, 15), "Q4_K": (0, 63), "Q5_K": (0, 63), "Q3_K": (-32, 31), "Q6_K": (-128, 127), "IQ4_XS": (-32, 31)}
    if name in ranges:
        assert (int(leaves["scale"].min()), int(leaves["scale"].max())) == ranges[name]
        assert leaves["scale"].dtype == (torch.int8 if ranges[name][0] else torch.uint8)
    else:
        assert leaves["scale"].dtype == (torch.uint8 if name in ("MXFP4", "NVFP4") else torch.float16)


@pytest.mark.parametrize("name", BLOCKS)
def test_unpacked_and_packed_is_the_same_bytes_also_where_scales_are_nan(name: str):
    block = BLOCKS[name]
    for sane in (True, False):
        data = noise(block, 64, 4, sane)
        assert torch.equal(block.pack(block.unpack(data)), data)
    assert block.pack(block.unpack(data[:0])).shape == (0, data.shape[1])
    assert block.decode(block.unpack(data[:0])).shape == (0, 4 * block.weights)
    assert torch.equal(block.pack(block.unpack(data[:, : 2 * block.bytes])), data[:, : 2 * block.bytes])  # a slice
    odd = torch.cat([data[:1], data[:1]], 1)[:, 3 * block.bytes : 4 * block.bytes]
    assert torch.equal(block.pack(block.unpack(odd)), odd)
    shifted = torch.cat([data.new_zeros(1), data.flatten()])[1:].view(data.shape)  # begins at an odd byte
    assert torch.equal(block.pack(block.unpack(shifted)), data)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(BLOCKS)), st.data())
def test_any_leaves_come_back_from_their_bytes(name: str, drawn: Any):
    """The other direction, for bytes of any origin: what was unpacked is unpacked again from its own bytes."""
    block = BLOCKS[name]
    data = torch.tensor([list(drawn.draw(st.binary(min_size=block.bytes, max_size=block.bytes)))], dtype=torch.uint8)
    leaves = block.unpack(data)
    packed = block.pack(leaves)
    assert same(block.unpack(packed), leaves)
    assert name == "TQ1_0" or torch.equal(packed, data)


@pytest.mark.parametrize("name", QUANTIZED)
def test_what_the_library_quantizes_is_read_and_written_back(name: str):
    block = BLOCKS[name]
    W = (torch.randn(16, 512) * torch.rand(16, 1)).numpy()
    data = torch.from_numpy(np.ascontiguousarray(gguf.quants.quantize(W, library(name))).view(np.uint8))
    leaves = block.unpack(data)
    assert torch.equal(block.pack(leaves), data)
    decoded = block.decode(leaves)
    assert torch.equal(decoded, torch.from_numpy(np.array(theirs(name, data))))
    power = float((W**2).mean())
    assert float(((decoded - torch.from_numpy(W)) ** 2).mean()) < power * (1 if name in ("TQ1_0", "TQ2_0") else 1 / 40)


def test_every_word_of_five_and_of_four_trits():
    """All 243 and 81 words: their bytes, in the wide, the narrow and the short part of a block, hold their digits."""
    block = BLOCKS["TQ1_0"]
    five, four = (torch.tensor(list(product(range(3), repeat=n)), dtype=torch.uint8) for n in (5, 4))
    for part, begin, size, words in (("wide", 0, 32, five), ("narrow", 32, 16, five), ("tail", 48, 4, four)):
        first = {"wide": 0, "narrow": 160, "tail": 240}[part]
        for place in (0, size - 1):
            codes = torch.zeros(len(words), 256, dtype=torch.uint8)
            codes[:, first + place + size * torch.arange(words.shape[1])] = words
            scale = torch.ones(len(words), 1, dtype=torch.float16)
            data = block.pack({"codes": codes, "scale": scale})
            assert torch.equal(data[:, begin + place], fractions(words.shape[1]))
            assert len(set(data[:, begin + place].tolist())) == len(words)
            assert torch.equal(block.unpack(data)["codes"], codes)
            assert torch.equal(torch.from_numpy(theirs("TQ1_0", data)), codes.float() - 1)


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_every_small_scale_is_the_number_that_llama_cpp_reads(name: str):
    block = BLOCKS[name]
    data = torch.zeros(256, block.bytes, dtype=torch.uint8)
    data[:, : block.weights // block.group] = torch.arange(256, dtype=torch.uint8)[:, None]
    data[:, -1] = 0x21  # values 0.5 and 1
    ours = block.decode(block.unpack(data))
    assert ours.numpy().tobytes() == theirs(name, data).tobytes()
    if name == "MXFP4":
        assert ours[127].unique().tolist() == [0, 0.5, 1] and bool((ours[:255].max(1).values.diff() > 0).all())


@pytest.mark.parametrize("name", CODED)
def test_what_does_not_fit_its_bits_is_refused(name: str):
    block = BLOCKS[name]
    leaves = block.unpack(noise(block))
    with pytest.raises(ValueError, match="whole blocks"):
        block.unpack(torch.zeros(2, block.bytes + 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="whole blocks"):
        block.pack(leaves | {"codes": leaves["codes"][:, 1:]})
    if block.levels < 256:
        with pytest.raises(ValueError, match="must lie in 0"):
            block.pack(leaves | {"codes": torch.full_like(leaves["codes"], block.levels)})
    if name in ("Q2_K", "Q4_K", "Q5_K", "Q3_K", "IQ4_XS"):
        with pytest.raises(ValueError, match="must lie in"):
            block.pack(leaves | {"scale": torch.full_like(leaves["scale"], 64)})
    top = "scale_top" if "scale_top" in leaves else "scale"
    with pytest.raises(ValueError, match="wrong type"):
        block.pack(leaves | {top: leaves[top].float()})
