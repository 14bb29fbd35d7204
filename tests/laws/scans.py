"""Scans: every implementation finds what the definition finds, bit for bit; what is exact is exact."""

import re

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from llvmlite import ir
from torch import Tensor

from bitwright.kernels import dispatch, scan_reference
from bitwright.kernels.numba import hamming as fast_hamming
from bitwright.kernels.numba import nibbles, top
from bitwright.kernels.numba import scan as fast
from bitwright.kernels.numba.vectors import FORMS, I64, Tile, forms
from bitwright.kernels.scanning import FAR, MOST, Blocked, Found, hamming, rounded, scan, score

CASES = 700  # per form


def same(one: Found, other: Found) -> bool:
    return torch.equal(one.rows, other.rows) and torch.equal(one.scores, other.scores)


def bitmap(kept: np.ndarray) -> Tensor:
    return torch.from_numpy(np.packbits(kept, bitorder="little"))


def tables_of(kind: int, q: int, t: int, g: torch.Generator) -> Tensor:
    """Floats; small integers, whose sums tie and fit 8 bits for several rows; none but one level; one table far above the rest."""
    if kind == 0:
        return torch.randn(q, t, 16, generator=g)
    if kind == 1:
        return torch.randint(-2, 3, (q, t, 16), generator=g).float()
    if kind == 2:
        return torch.randn(q, t, 1, generator=g).repeat(1, 1, 16)
    wide = torch.randn(q, t, 16, generator=g)
    wide[:, :1] *= 100
    return wide


@pytest.fixture(params=forms())
def form(request) -> str:
    return request.param


def test_every_form_finds_what_the_definition_finds(form: str, monkeypatch):
    monkeypatch.setattr(top, "ALONE", 1)  # threads even here
    g, draw = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for case in range(CASES):
        n, t, q, k = (int(draw.integers(1, most)) for most in (800 if case % 4 else 40, 21, 5, 50))
        codes = Blocked.of(torch.randint(0, 16, (n, t), generator=g, dtype=torch.uint8))
        tables = rounded(tables_of(case % 5 % 4, q, t, g))
        factor = [None, torch.randn(n, generator=g), torch.rand(n, generator=g).half()][case % 3]
        density = [None, 1.0, 0.5, 0.02, 0.0][case % 7 % 5]
        allowed = None if density is None else bitmap(draw.random(n) < density)
        wanted, found = (
            scan_reference.scan(codes, tables, k, factor, allowed),
            fast.scan(codes, tables, k, factor, allowed, form),
        )
        assert same(wanted, found), f"case {case}: n {n}, t {t}, q {q}, k {k}"


@pytest.mark.parametrize("t", [MOST, MOST - 1, 2])
def test_sums_are_exact_at_the_largest_tables_that_are_legal(form: str, t: int):
    codes = Blocked.of((torch.arange(70)[:, None] * torch.ones(t) // 5).to(torch.uint8))
    tables = rounded((torch.arange(16.0) ** 1.1 * torch.linspace(0.5, 1, t)[:, None])[None])
    most = tables.values.int().amax(2).sum(1)
    assert most > (60_000 if t > 2 else 250)
    wanted = scan_reference.scan(codes, tables, 70, None, None)
    assert same(wanted, fast.scan(codes, tables, 70, None, None, form))
    assert wanted.rows[0].tolist() == sorted(range(70), key=lambda i: (-(i // 5), i))


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr(top, "ALONE", 1)
    g, before = torch.Generator().manual_seed(1), torch.get_num_threads()
    nibbles = torch.randint(0, 16, (5001, 6), generator=g, dtype=torch.uint8)
    codes, tables = Blocked.of(nibbles), tables_of(1, 3, 6, g)
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((scan(codes, tables, 100), hamming(nibbles, nibbles[:3], 100)))
    finally:
        torch.set_num_threads(before)
    assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_the_entries_lead_to_the_same_everywhere():
    g = torch.Generator().manual_seed(2)
    nibbles = torch.randint(0, 16, (333, 7), generator=g, dtype=torch.uint8)
    codes, tables, allowed = Blocked.of(nibbles), tables_of(0, 2, 7, g), bitmap(np.arange(333) % 3 > 0)
    found = {}
    for name in ("numba", "reference"):
        with dispatch.only(name):
            found[name] = scan(codes, tables, 9, torch.ones(333), allowed), hamming(nibbles, nibbles[:2], 9, allowed)
    assert all(same(a, b) for a, b in zip(found["numba"], found["reference"]))
    assert (found["numba"][0].rows % 3 > 0).all()


@pytest.mark.parametrize("n, t", [(0, 4), (1, 1), (33, 7), (64, 8), (100, 0)])
def test_nibbles_survive_their_layout(n: int, t: int):
    nibbles = torch.randint(0, 16, (n, t), dtype=torch.uint8)
    codes, rows = Blocked.of(nibbles), torch.arange(n - 1, -1, -1)
    assert codes.data.nbytes == -(-n // 32) * -(-t // 2) * 32
    assert torch.equal(codes.nibbles()[:, :t], nibbles) and not codes.nibbles()[:, t:].any()
    assert torch.equal(codes.nibbles(rows)[:, :t], nibbles.flip(0))


def test_rounded_tables_are_near_and_their_sums_fit():
    g = torch.Generator().manual_seed(3)
    for case in range(200):
        t = int(torch.randint(1, 600, (), generator=g))
        tables = tables_of(case % 4, 3, t, g)
        values, scale, bias = rounded(tables)
        near = scale[:, None, None] * values[:, :t] + tables.amin(2, keepdim=True)
        assert ((near - tables).abs() <= 0.5001 * scale[:, None, None] + 1e-5).all()
        torch.testing.assert_close(bias, tables.amin(2).sum(1))
        spans = values.int().amax(2)
        assert spans.sum(1).max() <= 65535 and spans.view(3, -1, 2).sum(2).max() <= 255
        if case % 4 == 0:
            assert spans.sum(1).max() > 65000 or spans.view(3, -1, 2).sum(2).max() >= 253


def test_codes_against_codes_are_scored_exactly():
    """Signs: 4 dimensions a nibble, the query's signs against the points."""
    g = torch.Generator().manual_seed(4)
    points = (torch.arange(16)[:, None] >> torch.arange(4) & 1) * 2.0 - 1
    nibbles = torch.randint(0, 16, (500, 64), generator=g, dtype=torch.uint8)
    queries = points[torch.randint(0, 16, (4, 64), generator=g)]
    exact = queries.flatten(1) @ points[nibbles.long()].flatten(1).T
    found = scan(Blocked.of(nibbles), queries @ points.T, 500)
    order = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.rows, order.indices) and torch.equal(found.scores, order.values)


@pytest.mark.parametrize("name", ["numba", "reference"])
def test_scores_at_given_rows_are_those_of_the_float_tables(name: str, monkeypatch):
    monkeypatch.setattr(nibbles, "ALONE", 1)  # threads even here
    g, draw = torch.Generator().manual_seed(5), np.random.default_rng(5)
    for case in range(40):
        n, t, q, c = (int(draw.integers(1, most)) for most in (200, 30, 5, 60))
        codes, tables = torch.randint(0, 16, (n, t), generator=g, dtype=torch.uint8), torch.randn(q, t, 16, generator=g)
        rows = torch.randint(-1, n, (q, c), generator=g)
        factor = [None, torch.randn(n, generator=g), torch.rand(n, generator=g).half()][case % 3]
        total = torch.zeros(q, n)
        for i in range(t):
            total += tables[:, i, codes[:, i].long()]
        weighted = total if factor is None else factor.float() * total
        wanted = weighted.gather(1, rows.clamp_min(0)).masked_fill(rows < 0, -torch.inf)
        with dispatch.only(name):
            found = score(Blocked.of(codes), tables, rows, factor)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert name == "reference" or torch.equal(found, wanted)  # in the order of the tables, to the last bit


@pytest.mark.parametrize("name", ["numba", "reference"])
def test_where_there_is_nothing_to_score_nothing_is_read(name: str):
    with dispatch.only(name):
        for n, q, c in ((5, 2, 0), (5, 0, 3), (5, 2, 3)):
            found = score(Blocked.of(torch.zeros(n, 4, dtype=torch.uint8)), torch.ones(q, 4, 16), torch.full((q, c), -1))
            assert found.shape == (q, c) and (found == -torch.inf).all()
    none = Blocked.of(torch.zeros(0, 4, dtype=torch.uint8))
    assert score(none, torch.ones(1, 4, 16), torch.full((1, 2), -1), torch.ones(0).half()).tolist() == [[-torch.inf] * 2]


@pytest.mark.parametrize("width", [1, 2, 8, 12, 24, 32, 128, 520])
def test_hamming_distances_are_those_of_numpy(width: int):
    draw = np.random.default_rng(width)
    for case in range(20):
        n, q, k = (int(draw.integers(1, most)) for most in (700, 5, 60))
        codes, queries = (draw.integers(0, 256, (rows, width), dtype=np.uint8) for rows in (n, q))
        kept = draw.random(n) < [1.0, 0.5, 0.02][case % 3]
        differ = np.bitwise_count(queries[:, None] ^ codes).sum(2, dtype=np.int64)
        differ[:, ~kept] = FAR
        order = np.argsort(differ, axis=1, kind="stable")[:, :k]
        wanted = torch.full((q, k), FAR, dtype=torch.int32), torch.full((q, k), -1)
        for into, values in zip(wanted, (differ, np.where(kept, np.arange(n), -1)[None].repeat(q, 0))):
            into[:, : order.shape[1]] = torch.from_numpy(np.take_along_axis(values, order, 1))
        arguments = torch.from_numpy(codes), torch.from_numpy(queries), k, bitmap(kept)
        assert same(Found(*wanted), fast_hamming.hamming(*arguments))
        assert same(Found(*wanted), scan_reference.hamming(*arguments))


@pytest.mark.parametrize("deep", [False, True])
def test_the_form_for_arm_becomes_table_look_ups(deep: bool):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 5), "sums")
    builder = ir.IRBuilder(function.append_basic_block())
    Tile(FORMS["neon"], deep, 4, True).emit(builder, *function.args)
    builder.ret_void()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu="neoverse-n1", opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    assert len(re.findall(r"\ttbl\t", machine.emit_assembly(parsed))) >= 16


def test_bad_requests_are_refused_in_words():
    codes, tables = Blocked.of(torch.zeros(10, 4, dtype=torch.uint8)), torch.zeros(1, 4, 16)
    with pytest.raises(ValueError, match="A nibble is 16"):
        Blocked.of(torch.full((2, 2), 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="33 documents fill 2 blocks, not 1"):
        Blocked(codes.data, 33)
    with pytest.raises(ValueError, match="The codes have 4 nibbles, the queries 5 tables"):
        scan(codes, torch.zeros(1, 5, 16), 3)
    with pytest.raises(ValueError, match="k is 0"):
        scan(codes, tables, 0)
    with pytest.raises(ValueError, match="bitmap has 1 bytes for 10 documents; it takes 2"):
        scan(codes, tables, 3, allowed=torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="9 factors for 10 documents"):
        scan(codes, tables, 3, torch.ones(9))
    with pytest.raises(ValueError, match="infinities or nan"):
        scan(codes, tables / 0, 3)
    with pytest.raises(ValueError, match="16-bit sum"):
        rounded(torch.zeros(1, MOST + 1, 16))
    with pytest.raises(ValueError, match="64 bits, the queries 32"):
        hamming(torch.zeros(3, 8, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.uint8), 3)
