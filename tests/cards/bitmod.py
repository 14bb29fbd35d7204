"""Card bitmod: signal to noise of its data types on a Gaussian, the menu's order, second-level scales of 8 bits lose nothing."""

import pytest
import torch
from torch import Tensor

from bitwright.coder import Band, Coder
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.menu import FP3, FP4, Menu
from bitwright.grids.second_level import SecondLevel
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.terms.base import decode, stored_bits

CARD = {  # dB, groups of 128 of a unit Gaussian
    "FP3-ER": (Menu(FP3[:2]), 13.26),
    "FP3-EA": (Menu(FP3[2:]), 14.14),
    "BitMoD3": (Menu(FP3), 14.20),
    "INT3-asym": (Integer(8), 13.33),
    "FP4": (Table("e2m1"), 19.26),
    "FP4-ER": (Menu(FP4[:2]), 20.04),
    "FP4-EA": (Menu(FP4[2:]), 19.38),
    "BitMoD4": (Menu(FP4), 20.18),
    "INT4-asym": (Integer(16), 19.95),
    "NF4": (Table("nf4"), 20.39),
}


def sqnr(x: Tensor, grid: Grid) -> float:
    p = grid.fit(x)
    noise = grid.decode(grid.encode(x, p), p) - x
    return float(10 * torch.log10(x.square().sum() / noise.square().sum()))


@pytest.mark.parametrize("name", CARD)
def test_signal_to_noise_is_the_cards(name: str):
    grid, told = CARD[name]
    assert sqnr(torch.randn(40000, 128), grid) == pytest.approx(told, abs=0.1)


def test_scales_of_eight_bits_under_one_of_the_row_lose_nothing_and_four_lose_something(problem):
    W, _ = problem(64, 1024)
    lost = {}
    for levels in (0, 128, 8):
        grid = Menu(FP4, scale=SecondLevel(levels, "row")) if levels else Menu(FP4)
        terms = Coder.fit(W, [Band(grid, Layout(1, 128))]).terms(W)
        lost[levels] = float((W - decode(terms)).square().sum())
    assert lost[128] < 1.01 * lost[0] and lost[8] > 1.01 * lost[0]


def test_rate_is_ten_bits_for_a_group_and_sixteen_for_a_row():
    W = torch.randn(8, 4096)
    terms = Coder.fit(W, [Band(Menu(FP3, scale=SecondLevel(256, "row")), Layout(1, 128))]).terms(W)
    assert stored_bits(terms) / W.numel() == pytest.approx(3 + 10 / 128 + 16 / 4096)
