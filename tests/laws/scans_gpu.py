"""Scans on a GPU are the reference, bit for bit: in Triton's interpreter on the CPU, or on a GPU with TRITON_INTERPRET=0."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.kernels import dispatch
from bitwright.kernels.scanning import Blocked, Found, hamming, rounded, scan

pytest.importorskip("triton")
from bitwright.kernels.triton import scan as ours
from bitwright.kernels.triton import scan_few, scan_many

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


def bitmap(n: int, share: float) -> Tensor:
    bits = torch.rand(-(-n // 8) * 8) < share
    return (bits.view(-1, 8).int() << torch.arange(8)).sum(1).to(torch.uint8).to(DEVICE)


@pytest.mark.parametrize("n, t, k", [(1, 1, 2), (64, 2, 1), (250, 7, 2), (250, 8, 100)])
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


def test_the_assembly_is_the_plain_form() -> None:
    """NVIDIA's instructions, read one by one: 8 sums of 2 tables, each word 4 documents."""
    words, values = torch.randint(0, 2**32, (2,)).tolist(), torch.randint(0, 128, (2, 16)).tolist()
    tables = [int.from_bytes(bytes(table[i : i + 4]), "little") for table in values for i in (0, 4, 8, 12)]
    sums = torch.randint(0, 1000, (8,)).tolist()
    found = executed(scan_few.LOOKUP, dict(enumerate([*words, *tables, *sums], 8)))
    for i in range(8):
        byte = words[i // 4] >> i % 4 * 8
        assert found[i] == sums[i] + values[0][byte & 15] + values[1][byte >> 4 & 15]


def test_the_assembly_of_choices_is_the_plain_form() -> None:
    word = int(torch.randint(0, 2**32, (1,)))
    for kind in range(40):
        kinds, kind = (8, kind) if kind < 8 else (32, kind - 8)
        found = executed(scan_many.chooses(kind, kinds), {1: word})[0]
        for i in range(4):
            byte = word >> 8 * i & 255
            wanted = byte >> kind & 1 if kinds == 8 else (byte >> kind // 16 * 4 & 15) == kind % 16
            assert found >> 8 * i & 255 == wanted


def executed(text: str, numbers: dict[int, int]) -> list[int]:
    """The numbers $0, $1, ... after the instructions that a lookup is made of."""
    own: dict[str, int] = {f"${i}": number for i, number in numbers.items()}

    def bits(a: int, b: int, c: int, choice: int) -> int:
        return sum((choice >> (a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1) & 1) << i for i in range(32))

    does = {
        "mov": lambda a: a,
        "shl": lambda a, n: a << n,
        "shr": lambda a, n: a >> n,
        "and": lambda a, b: a & b,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "lop3": bits,
        "prmt": lambda a, b, c: sum(((b << 32 | a) >> 8 * (c >> 4 * i & 15) & 255) << 8 * i for i in range(4)),
        "dp4a": lambda a, b, c: c + sum((a >> 8 * i & 255) * (b >> 8 * i & 255) for i in range(4)),
    }
    for line in text[text.index(";") + 1 : -1].split(";")[:-1]:
        name, into, *given = line.replace(",", " ").split()
        own[into] = does[name.split(".")[0]](*(own[x] if x in own else int(x, 0) for x in given)) & 0xFFFFFFFF
    return [number for name, number in sorted(own.items()) if name[0] == "$" and int(name[1:]) not in numbers]
