"""Terms: what is loaded decodes like what was stored, bit for bit, and the meta foretells every byte."""

import json
from collections.abc import Callable
from math import floor, log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import on
from torch import Tensor

from bitwright import index
from bitwright.allocation.water import dense_counts
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.compand import Compand
from bitwright.grids.integer import Integer
from bitwright.grids.ragged import Ragged
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.terms import base, pack, ragged
from bitwright.terms.coded import Coded
from bitwright.terms.columns import Columns
from bitwright.terms.low_rank import LowRank
from bitwright.terms.rows import Rows
from bitwright.terms.sign_lowrank import SignLowRank
from bitwright.terms.sparse import Sparse
from bitwright.terms.turns import Turns
from bitwright.terms.widely_linear import WidelyLinear


def coded(levels: int, layout: Layout, columns: list[Tensor | None]) -> tuple[base.Term, ...]:
    W = torch.randn(3, 10)
    bands = [Band(Integer(levels), layout if c is None else layout.nearest((3, len(c))), c) for c in columns]
    return Coder.fit(W, bands).terms(W)


def uneven(out: int, inp: int) -> list[Coded]:
    """Codes of groups with every number of levels, in whatever bytes they need."""
    W, found = torch.randn(out, inp), []
    for grid, layout in ((Ragged(8.0), Layout(1, 1)), (Ragged(8.0, whole=True), Layout(1, 2)), (Compand(8.0), Layout(4, 1))):
        (p,) = Coder.fit(W, [Band(grid, layout)]).params
        leaf, tiles = grid.leaves["count"], layout.tiles((out, inp))
        count = leaf.spread(torch.randint(0, leaf.levels, leaf.rows(tiles)), tiles)
        coder = Coder((out, inp), (Band(grid, layout),), (grid.recount(layout.split(W), p, count),))
        found.extend(coder.terms(W))
    return found


# Every kind of term with examples of it. A kind without an entry fails the law below.
EXAMPLES: dict[str, Callable[[], list[base.Term]]] = {
    "coded": lambda: (
        [
            t
            for levels, layout in ((2, Layout(1, 5)), (300, Layout(None, None)), (7, Layout(3, 2)), (9, Layout(None, 1)))
            for columns in ([None], [torch.tensor([3, 1, 7, 5, 9, 0]), torch.tensor([2, 4, 6, 8])])
            for t in coded(levels, layout, columns)
        ]
        + uneven(8, 10)
    ),
    "low_rank": lambda: [
        LowRank(torch.randn(6, m).to(kind), torch.randn(m, 5).to(kind))
        for m in (1, 4)
        for kind in (torch.float16, torch.bfloat16, torch.float32)
    ],
    "rows": lambda: [
        Rows(t, torch.randperm(12) // 4 if n == 3 else torch.randint(0, n, (12,)), n)
        for n in (2, 3, 11)
        for t in (*uneven(12, 10), Coder.fit(torch.randn(12, 10), [Band(Integer(5), Layout(1, 5))]).terms(torch.randn(12, 10))[0])
    ],
    "columns": lambda: [Columns.of(torch.randn(3, 7), count) for count in (0, 1, 7)],
    "sign_lowrank": lambda: [
        SignLowRank.of(torch.randn(out, inp), torch.rand(out, k), torch.rand(k, inp))
        for (out, inp), k in (((3, 16), 2), ((5, 13), 1), ((1, 7), 7), ((9, 8), 3))
    ],
    "widely_linear": lambda: [
        WidelyLinear(t)
        for table, layout in (("roots4", Layout(1, 10)), ("ternary", Layout(3, 5)))
        for t in Coder.fit(torch.randn(3, 20), [Band(Table(table), layout)]).terms(torch.randn(3, 20))
    ],
    "turns": lambda: [Turns({b: torch.randint(0, 2, (3, inp)) for b in (6, 2)}) for inp in (7, 8)],
    "sparse": lambda: [Sparse.of(torch.randn(3, inp), count) for inp in (7, 256, 257, 2**15, 2**15 + 1) for count in (0, 1, 20)],
}


def reloaded(term: base.Term) -> base.Term:
    meta = json.loads(json.dumps(term.meta()))
    return base.load(meta, {name: t.clone() for name, t in term.tensors().items()})


def check(term: base.Term) -> None:
    tensors, meta = term.tensors(), json.loads(json.dumps(term.meta()))
    assert meta == term.meta()  # nothing that JSON would turn into something else
    assert base.spec(meta) == {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    assert base.stored_bits((term,)) == base.stored_bits((meta,)) == 8 * sum(t.numel() * t.element_size() for t in tensors.values())
    assert all(t.is_contiguous() for t in tensors.values())
    back, dense = reloaded(term), term.decode()
    assert dense.shape == term.shape == back.shape and dense.dtype == torch.float32 and torch.isfinite(dense).all()
    assert torch.equal(back.decode(), dense)
    assert back.meta() == term.meta()
    again = back.tensors()
    assert set(again) == set(tensors) and all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in tensors.items())


@pytest.mark.parametrize("kind", index.PARTS["terms"])
def test_a_loaded_term_is_the_stored_one_and_its_meta_foretells_its_bytes(kind: str):
    assert kind in EXAMPLES, f"name some examples of {kind!r} terms here"
    found = EXAMPLES[kind]()
    assert found and all(t.meta()["kind"] == kind for t in found)
    for term in found:
        check(term)


def test_codes_on_every_grid_and_layout_load_as_they_were(grid: Grid, layout: Layout):
    W = torch.randn(8, 32)
    layout = on(grid, layout)
    for columns in (None, torch.randperm(32)):
        for term in Coder.fit(W, [Band(grid, layout, columns)], torch.rand(32)).terms(W):
            check(term)


def test_a_sum_decodes_to_the_sum():
    W = torch.randn(6, 10)
    terms = (*Coder.fit(W, [Band(Integer(4), Layout())]).terms(W), Sparse.of(W, 3), LowRank(torch.ones(6, 1), torch.ones(1, 10)))
    total = sum(t.decode() for t in terms)
    assert torch.equal(base.decode(terms), total)
    assert base.stored_bits(terms) == sum(base.stored_bits((t,)) for t in terms)


def test_sparse_keeps_the_largest_entries_to_half_precision():
    dense = torch.randn(9, 33)
    found = Sparse.of(dense, 40)
    kept = found.decode() != 0
    assert kept.sum() == 40 and torch.equal(found.decode()[kept], dense[kept].half().float())
    assert dense.abs()[kept].min() >= dense.abs()[~kept].max()
    ranked = Sparse.of(dense, 5, rank=1 / dense.abs())
    assert set(ranked.decode()[ranked.decode() != 0].tolist()) == set(
        dense.flatten()[dense.abs().flatten().argsort()[:5]].half().tolist()
    )


def test_sparse_entries_are_stored_finite():
    """An outlier beyond fp16 is the reason for a sparse term; it must not become infinite."""
    dense = torch.randn(3, 8)
    dense[1, 2] = 1e5
    assert torch.isfinite(Sparse.of(dense, 2).decode()).all()


# --- packing -----------------------------------------------------------------------------------------------------------------

LEVELS = st.integers(2, 300) | st.sampled_from([512, 729, 1000, 2187, 4096, 6561, 19683, 59049, 65535, 65536])


def digits(levels: int, rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, levels, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


@settings(max_examples=150)
@given(LEVELS, st.integers(1, 5), st.integers(1, 70), st.integers(0, 9))
def test_unpacking_inverts_packing(levels: int, rows: int, count: int, seed: int):
    codes = digits(levels, rows, count, seed)
    codes[0], codes[-1, -1] = levels - 1, 0
    data = pack.pack(codes, levels)
    assert data.shape == (rows, pack.width(count, levels)) and data.dtype == torch.uint8
    back = pack.unpack(data, levels, count)
    assert torch.equal(back.int(), codes) and back.is_contiguous()


def test_every_number_of_levels_is_exact_and_dense():
    for levels in range(2, 301):
        codes = torch.stack([digits(levels, 1, 61)[0], torch.full((61,), levels - 1)])
        assert torch.equal(pack.unpack(pack.pack(codes, levels), levels, 61).int(), codes.int())
        per, size = pack.word(levels)
        assert levels**per <= 256**size < 256 ** (size + 1) <= 256**8  # what is packed fits, in one int64
        assert 8 * size / per == min(8 * n / floor(8 * n / log2(levels) + 1e-9) for n in range(1, 8) if levels <= 256**n)
        assert (
            log2(levels) <= 8 * size / per < log2(levels) + (0.25 if levels <= 32 else 1 if levels <= 256 else 1.5)
        )  # little is wasted


def test_the_rates_that_the_cards_count_on():
    assert [pack.word(n) for n in (2, 3, 4, 5, 9, 16, 256, 65536)] == [
        (8, 1),
        (5, 1),
        (4, 1),
        (24, 7),
        (5, 2),
        (2, 1),
        (1, 1),
        (1, 2),
    ]
    assert pack.width(128, 3) * 8 / 128 == pytest.approx(1.625)  # 26 bytes: 1.6 and a ragged word
    assert pack.width(160, 9) * 8 / 160 == 3.2


@pytest.mark.parametrize("bits", range(1, 9))
def test_powers_of_two_are_the_dense_bit_stream_low_bits_first(bits: int):
    codes = digits(2**bits, 3, 41)
    stream = (codes[..., None] >> torch.arange(bits) & 1).flatten(1).numpy().astype(np.uint8)
    dense = np.packbits(stream, axis=1, bitorder="little")
    data = pack.pack(codes, 2**bits).numpy()
    assert np.array_equal(data[:, : dense.shape[1]], dense) and not data[:, dense.shape[1] :].any()


def test_rows_are_packed_apart():
    codes = digits(5, 4, 37)
    whole = pack.pack(codes, 5)
    assert all(torch.equal(whole[i : i + 1], pack.pack(codes[i : i + 1], 5)) for i in range(4))


@pytest.mark.parametrize("bad", [-1, 5, 6])
def test_codes_out_of_range_are_refused(bad: int):
    codes = digits(5, 2, 9)
    codes[1, 4] = bad
    with pytest.raises(ValueError, match=r"0 \.\. 4"):
        pack.pack(codes, 5)


@pytest.mark.parametrize("levels", [-2, 0, 1, 65537])
def test_numbers_of_levels_without_a_code_are_refused(levels: int):
    with pytest.raises(ValueError, match="levels"):
        pack.word(levels)


# --- ragged packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 64])
def test_ragged_codes_come_back_and_cost_what_their_levels_say(n: int):
    levels = torch.randint(1, 257, (40,))
    levels[:6] = torch.tensor([1, 2, 2, 3, 256, 1])
    codes = (torch.rand(40, n) * levels[:, None]).int()
    runs = {int(k): n * int((levels == k).sum()) for k in levels.unique()}
    size = sum(ragged.width(count, k) for k, count in runs.items())
    for spare in (0, 5):
        data = ragged.pack(codes, levels, size + spare)
        assert data.shape == (size + spare,) and not data[size:].any()
        assert torch.equal(ragged.unpack(data, levels, n).int(), codes)
    assert size <= sum(floor(ragged.price(k) * count / 8) + 1 for k, count in runs.items())
    with pytest.raises(ValueError, match="do not fit"):
        ragged.pack(codes, levels, size - 1)
    with pytest.raises(BadRequest, match="damaged"):
        ragged.unpack(data[: size - 1], levels, n)


@pytest.mark.parametrize("levels", [2, 3, 5, 9, 16, 100, 256])
def test_codes_of_one_number_of_levels_fit_into_its_price(levels: int):
    for count in (1, 7, 23, 24, 25, 1000, 4097):
        assert ragged.width(count, levels) <= ragged.payload(ragged.price(levels), count)
        assert 8 * ragged.width(count, levels) >= count * log2(levels) - 1e-6


def test_levels_that_pack_densely_waste_less_than_two_in_a_hundred_bits():
    assert all(ragged.price(k) < 1.02 * log2(k) for k in dense_counts(256)[1:])
    assert {2, 3, 4, 5, 8, 16, 32, 64, 128, 256} <= set(dense_counts(256))
