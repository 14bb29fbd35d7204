"""Tables rounded to bytes: every implementation gives the reference's bits, values, steps and biases alike. Triton's kernel runs in
its interpreter on the CPU, or on a GPU with TRITON_INTERPRET=0."""

import warnings

import pytest
import torch
from torch import Tensor

from bitwright.kernels import dispatch, scan_reference
from bitwright.kernels.numba import nibbles
from bitwright.kernels.scanning import MOST, Blocked, Rounded, rounded, scan

triton = pytest.importorskip("triton")
DEVICES = {"triton": "cpu" if triton.knobs.runtime.interpret else "cuda", "numba": "cpu"}
SIGNS = torch.tensor([[1.0 if i >> b & 1 else -1.0 for i in range(16)] for b in range(4)])
MIRRORED = torch.tensor([-1.51, -0.45, 0.45, 1.51])[torch.arange(16) >> 2 * torch.arange(2)[:, None] & 3]


def one_far_above(q: int, t: int) -> Tensor:
    tables = torch.randn(q, t, 16)
    tables[:, t // 2] *= 100
    return tables


def nearly_adding_up(q: int, t: int) -> Tensor:
    """Off by about as much as is still taken for adding up."""
    tables = torch.randn(q, t, 4) @ SIGNS
    noise = (torch.rand(q, t, 16) - 0.5) * scan_reference.rounded(tables).scale[:, None, None] / 28
    return tables + noise


KINDS = {
    "any": lambda q, t: torch.randn(q, t, 16),
    "signs": lambda q, t: torch.randn(q, t, 4) @ SIGNS,
    "signs of signs": lambda q, t: torch.randint(0, 2, (q, t, 4)).float() @ SIGNS,
    "an even grid": lambda q, t: torch.randn(q, t, 1) * torch.arange(16.0) + torch.randn(q, t, 1),
    "points that mirror": lambda q, t: torch.randn(q, t, 2) @ MIRRORED,
    "nearly adding up": nearly_adding_up,
    "multiples of a step": lambda q, t: torch.randint(0, 5, (q, t, 16)) * 0.37 - 1,
    "multiples that are too many": lambda q, t: torch.randint(0, 400, (q, t, 16)) * 2.0,
    "constants": lambda q, t: torch.randn(q, t, 1).repeat(1, 1, 16),
    "zeros": lambda q, t: torch.zeros(q, t, 16),
    "one far above the rest": one_far_above,
    "far from zero": lambda q, t: torch.randn(q, t, 16) * 1e-3 + 1000,
    "small": lambda q, t: torch.randn(q, t, 16) * 1e-30,
    "too small for a step": lambda q, t: torch.randn(q, t, 16) * 1e-37,
}


def same(one: Rounded, other: Rounded) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other))


def by(name: str, tables: Tensor) -> Rounded:
    with dispatch.only(name):
        return rounded(tables.to(DEVICES[name]))


@pytest.fixture(params=DEVICES)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_the_references(name: str, kind: str) -> None:
    for q, t in ((1, 1), (2, 7), (1, 257)):
        tables = KINDS[kind](q, t)
        assert same(by(name, tables), scan_reference.rounded(tables)), f"{q} x {t}"


@pytest.mark.parametrize("kind, q, t", [("any", 1, MOST), ("signs", 1, MOST - 1), ("any", 40, 3), ("signs", 40, 3)])
def test_and_so_it_is_for_the_most_tables_and_for_many_queries(name: str, kind: str, q: int, t: int) -> None:
    tables = KINDS[kind](q, t)
    assert same(by(name, tables), scan_reference.rounded(tables))


def test_a_query_is_rounded_as_if_it_were_alone() -> None:
    tables = torch.cat([make(2, 200) for make in KINDS.values()])
    whole = scan_reference.rounded(tables)
    for i in range(len(tables)):
        assert same(scan_reference.rounded(tables[i : i + 1]), Rounded(*(part[i : i + 1] for part in whole)))


def test_tables_may_lie_as_they_like_and_be_none(name: str) -> None:
    tables = torch.randn(4, 16, 10).transpose(1, 2)[::2]
    assert same(by(name, tables), scan_reference.rounded(tables))
    assert by(name, torch.zeros(0, 5, 16)).values.shape == (0, 6, 16)
    assert by(name, torch.zeros(2, 0, 16)).values.shape == (2, 0, 16)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nibbles, "ALONE", 1)
    tables, before = torch.randn(7, 30, 16), torch.get_num_threads()
    alone = by("numba", tables)
    try:
        torch.set_num_threads(3)
        assert same(by("numba", tables), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 3, 15])
def test_what_is_not_finite_is_seen_and_spoils_no_other_query(name: str, bad: float, place: int) -> None:
    tables = torch.randn(3, 5, 16)
    tables[1, 4, place] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter computes with numpy
        found, wanted = by(name, tables), scan_reference.rounded(tables)
        assert found.scale.isfinite().tolist() == wanted.scale.isfinite().tolist() == [True, False, True]
        assert same(Rounded(*(part[::2] for part in found)), Rounded(*(part[::2] for part in wanted)))
        codes = Blocked.of(torch.randint(0, 16, (50, 5), dtype=torch.uint8, device=DEVICES[name]))
        with dispatch.only(name), pytest.raises(ValueError, match="infinities or nan"):
            scan(codes, tables.to(DEVICES[name]), 3)


def test_numbers_too_large_to_add_are_refused() -> None:
    codes = Blocked.of(torch.zeros(50, 64, dtype=torch.uint8))
    for tables in (torch.randn(1, 64, 16).sign() * 3e37, torch.randn(1, 64, 16) * 1e38):
        for name in ("numba", "reference"):
            with dispatch.only(name), pytest.raises(ValueError, match="too large to add"):
                scan(codes, tables, 3)
