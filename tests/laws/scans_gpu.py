"""Scans on a GPU are the reference, bit for bit: in Triton's interpreter on the CPU, or on a GPU with TRITON_INTERPRET=0."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.kernels import dispatch
from bitwright.kernels.scanning import Blocked, Found, hamming, rounded, scan

pytest.importorskip("triton")
import triton
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from bitwright.kernels.triton import scan as ours
from bitwright.kernels.triton import scan_many, scan_top

DEVICE = "cpu" if ours.suits(torch.device("cpu")) else "cuda"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of two blocks, so that a few hundred documents fill several."""
    monkeypatch.setattr(ours, "TILE", 64)


def both(search: Callable[..., Found], *args: Any) -> tuple[Found, Found]:
    found = list[Found]()
    for name in ("triton", "reference"):
        with dispatch.only(name):
            found.append(search(*args))
    return found[0], found[1]


@pytest.mark.parametrize("k", [1, 10, scan_top.MOST, scan_top.MOST + 1, 400])
@pytest.mark.parametrize("tiles", [0, 40])
def test_the_best_keys_are_those_of_a_stable_sort(k: int, tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rounds of maxima in one part or in parts of parts, or by a sort; keys are equal often, and rows may be chosen tiles."""
    monkeypatch.setattr(scan_top, "PART", 256)
    keys = torch.randint(-50, 50, (3, 320 if tiles else 5000), dtype=torch.int32, device=DEVICE)
    chosen = torch.stack([torch.randperm(900)[:tiles].sort().values for _ in range(3)]).int().to(DEVICE) if tiles else None
    found, rows = scan_top.top(keys, k, chosen)
    wanted = keys.sort(dim=1, descending=True, stable=True)
    at = wanted.indices[:, :k]
    assert torch.equal(found, wanted.values[:, :k])
    assert torch.equal(rows.long(), at if chosen is None else chosen.long().gather(1, at // 8) * 8 + at % 8)


def bitmap(n: int, share: float) -> Tensor:
    bits = torch.rand(-(-n // 8) * 8) < share
    return (bits.view(-1, 8).int() << torch.arange(8)).sum(1).to(torch.uint8).to(DEVICE)


@pytest.mark.parametrize("n, t, k", [(1, 1, 2), (64, 2, 1), (250, 7, 2), (250, 8, 100), (250, 2, 200)])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_scans_are_the_reference(n: int, t: int, k: int, filtered: bool, weighted: bool) -> None:
    codes = Blocked.of(torch.randint(0, 16, (n, t), dtype=torch.uint8, device=DEVICE))
    tables = torch.randn(2, t, 16, device=DEVICE)
    factor = (torch.randn(n, device=DEVICE)).half() if weighted else None
    own, wanted = both(scan, codes, tables, k, factor, bitmap(n, 0.3) if filtered else None)
    assert torch.equal(own.rows, wanted.rows) and torch.equal(own.scores, wanted.scores)


@pytest.mark.parametrize("n, width, k", [(1, 4, 2), (250, 3, 2), (200, 8, 100), (150, 160, 1)])
@pytest.mark.parametrize("filtered", [False, True])
def test_distances_are_the_reference(n: int, width: int, k: int, filtered: bool) -> None:
    codes, queries = (torch.randint(0, 256, (m, width), dtype=torch.uint8, device=DEVICE) for m in (n, 2))
    own, wanted = both(hamming, codes, queries, k, bitmap(n, 0.3) if filtered else None)
    assert torch.equal(own.rows, wanted.rows) and torch.equal(own.scores, wanted.scores)


@pytest.mark.parametrize("t, filtered, weighted", [(3, False, False), (3, True, True), (66, False, True)])
def test_many_queries_at_once_are_the_reference(t: int, filtered: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of any values, and whole ones that add up over bits; runs of bytes that are not full."""
    monkeypatch.setattr(ours, "MANY_NIBBLES", 1)
    n, signs = 150, torch.tensor([[1, -1][i >> b & 1] for i in range(16) for b in range(4)], device=DEVICE).view(16, 4).float()
    codes = Blocked.of(torch.randint(0, 16, (n, t), dtype=torch.uint8, device=DEVICE))
    factor, allowed = torch.randn(n, device=DEVICE) if weighted else None, bitmap(n, 0.3) if filtered else None
    for tables, kinds in ((torch.randn(2, t, 16), 32), (torch.randint(-3, 4, (2, t, 4)).float() @ signs.cpu().T, 8)):
        tables = tables.to(DEVICE)
        assert len(scan_many.of_tables(rounded(tables).values).bytes) == kinds
        own, wanted = both(scan, codes, tables, 5, factor, allowed)
        assert torch.equal(own.rows, wanted.rows) and torch.equal(own.scores, wanted.scores)


@pytest.mark.parametrize("points", [(-1.0, 1.0), (-1.51, -0.45, 0.45, 1.51), tuple(range(16))], ids=len)
def test_tables_that_add_up_over_bits_still_do_when_rounded(points: tuple[float, ...]) -> None:
    """So a matrix product of bits is enough; and the rounded tables keep the float ones' mean and are near them."""
    bits, nibbles = (len(points) - 1).bit_length(), torch.arange(16)
    values = torch.stack([torch.tensor(points)[nibbles >> bits * i & len(points) - 1] for i in range(4 // bits)]).float()
    tables = torch.randn(3, 20, 4 // bits) @ values
    found = rounded(tables)
    assert len(scan_many.of_tables(found.values).bytes) == 8
    near = found.scale[:, None, None] * found.values + ((tables - found.scale[:, None, None] * found.values).mean(2, keepdim=True))
    assert ((near - tables).abs() <= 2.001 * found.scale[:, None, None]).all()
    torch.testing.assert_close(
        found.bias + found.scale * found.values.float().mean(2).sum(1), tables.mean(2).sum(1), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("filtered", [False, True])
def test_many_distances_at_once_are_the_reference(width: int, filtered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MANY_BITS", 1)
    codes, queries = (torch.randint(0, 256, (m, width), dtype=torch.uint8, device=DEVICE) for m in (150, 3))
    own, wanted = both(hamming, codes, queries, 5, bitmap(150, 0.3) if filtered else None)
    assert torch.equal(own.rows, wanted.rows) and torch.equal(own.scores, wanted.scores)


def test_equals_come_in_the_order_of_their_rows() -> None:
    """All documents alike, in more tiles than are asked for; then with few values, so that every tile's best is the same."""
    same = Blocked.of(torch.zeros(500, 4, dtype=torch.uint8, device=DEVICE))
    with dispatch.only("triton"):
        assert scan(same, torch.randn(2, 4, 16, device=DEVICE), 5).rows.tolist() == [[0, 1, 2, 3, 4]] * 2
    codes = Blocked.of(torch.randint(0, 2, (250, 4), dtype=torch.uint8, device=DEVICE))
    own, wanted = both(scan, codes, torch.randn(2, 4, 16, device=DEVICE).sign(), 30)
    assert torch.equal(own.rows, wanted.rows)


def test_queries_that_do_not_fit_together_are_searched_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = Blocked.of(torch.randint(0, 16, (100, 6), dtype=torch.uint8, device=DEVICE))
    tables = torch.randn(3, 6, 16, device=DEVICE)
    with dispatch.only("triton"):
        whole = scan(codes, tables, 3)
        monkeypatch.setattr(ours, "ROOM", 1)
        assert torch.equal(scan(codes, tables, 3).rows, whole.rows)


def test_no_queries_and_no_documents() -> None:
    none = Blocked.of(torch.zeros(0, 4, dtype=torch.uint8, device=DEVICE))
    with dispatch.only("triton"):
        assert scan(none, torch.randn(2, 4, 16, device=DEVICE), 3).rows.tolist() == [[-1] * 3] * 2
        some = torch.zeros(9, 4, dtype=torch.uint8, device=DEVICE)
        assert hamming(some, some[:0], 3).rows.shape == (0, 3)


def test_what_is_written_in_assembly_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter reads NVIDIA's instructions too, as far as the kernels use them (`executed`)."""
    if DEVICE == "cpu":
        monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", executed)
        monkeypatch.setattr(triton.language.tuple, "__radd__", lambda own, other: other + tuple(own.values), raising=False)
    monkeypatch.setattr(ours, "assembles", lambda _: True)
    codes = Blocked.of(torch.randint(0, 16, (90, 6), dtype=torch.uint8, device=DEVICE))
    signs = torch.tensor([[1.0 if i >> b & 1 else -1.0 for i in range(16)] for b in range(4)], device=DEVICE)
    bits, queries = (torch.randint(0, 256, (n, 8), dtype=torch.uint8, device=DEVICE) for n in (90, 2))
    for least in (100, 1):
        monkeypatch.setattr(ours, "MANY_NIBBLES", least)
        monkeypatch.setattr(ours, "MANY_BITS", least)
        for tables in (torch.randn(2, 6, 16, device=DEVICE), torch.randn(2, 6, 4, device=DEVICE) @ signs):
            own, wanted = both(scan, codes, tables, 90)
            assert torch.equal(own.rows, wanted.rows) and torch.equal(own.scores, wanted.scores)
        own, wanted = both(hamming, bits, queries, 90)
        assert torch.equal(own.rows, wanted.rows) and torch.equal(own.scores, wanted.scores)


def executed(_: object, text: str, constraints: str, given: list[Any], kinds: list[Any], pure: bool, pack: int) -> Any:
    """One thread's registers of `pack` neighbouring elements at a time, all threads at once."""
    outs = constraints.count("=")
    shape = given[0].data.shape
    registers = [np.ascontiguousarray(x.data).view(np.uint8).reshape(-1, x.data.itemsize * pack).view(np.uint32) for x in given]
    inputs = np.concatenate(registers, 1).astype(np.uint64)
    own = {f"${outs + i}": inputs[:, i] for i in range(inputs.shape[1])}

    def byte(x: Any, i: Any) -> Any:
        return x >> np.uint64(8) * i & np.uint64(255)

    def lop3(a: Any, b: Any, c: Any, table: Any) -> Any:
        rows = [i for i in range(8) if int(table) >> i & 1]
        picks = [(a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in rows]
        return functools.reduce(np.bitwise_or, picks)

    does: dict[str, Callable[..., Any]] = {
        "mov": lambda a: a,
        "shl": lambda a, n: a << n,
        "shr": lambda a, n: a >> n,
        "and": lambda a, b: a & b,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "popc": lambda a: sum(a >> np.uint64(i) & np.uint64(1) for i in range(32)),
        "lop3": lop3,
        "prmt": lambda a, b, c: sum(
            byte(b << np.uint64(32) | a, c >> np.uint64(4 * i) & np.uint64(7)) << np.uint64(8 * i) for i in range(4)
        ),
        "dp4a": lambda a, b, c: c + sum(byte(a, np.uint64(i)) * byte(b, np.uint64(i)) for i in range(4)),
    }
    for line in filter(str.strip, text.strip("{}").split(";")):
        name, into, *parts = line.replace(",", " ").split()
        if name != ".reg":
            values = [own[x] if x in own else np.uint64(int(x, 0)) for x in parts]
            assert name[:4] != "prmt" or not np.any(values[2] & np.uint64(0x8888))  # which would ask for signs
            own[into] = np.broadcast_to(does[name.split(".")[0]](*values) & np.uint64(0xFFFFFFFF), inputs.shape[:1])
    each = [np.dtype({8: np.int8, 32: np.int32}[kind.scalar.primitive_bitwidth]) for kind in kinds]
    found, at = [], 0
    for kind, dtype in zip(kinds, each):
        count = dtype.itemsize * pack // 4
        words = np.stack([own[f"${at + i}"] for i in range(count)], 1).astype(np.uint32)
        found.append(TensorHandle(words.view(dtype).reshape(shape).copy(), kind.scalar))
        at += count
    return SimpleNamespace(get_result=found.__getitem__)
