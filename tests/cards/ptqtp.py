"""Card ptqtp: the errors of its tables, monotone alternation, exact packing, and where two planes stand on a model."""

from itertools import product

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes, zoo
from bitwright.calibrate.text import text_windows
from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.evaluation import perplexity
from bitwright.grids.base import Grid
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.grids.trit_planes import TritPlanes
from bitwright.layout import Layout
from bitwright.terms import pack
from bitwright.terms.base import load, stored_bits

CARD = {"gaussian": {1: 0.433, 2: 0.166, 3: 0.075}, "laplace": {1: 0.508, 2: 0.205, 3: 0.086}}


def groups(kind: str, count: int = 400) -> Tensor:
    gaussian = torch.randn(count, 128)
    return gaussian if kind == "gaussian" else gaussian.sign() * torch.empty(count, 128).exponential_()


def squares(x: Tensor, grid: Grid) -> Tensor:
    """Squared error of every group."""
    p = grid.fit(x)
    return (x - grid.decode(grid.encode(x, p), p)).square().sum(1)


def relative(x: Tensor, squared: Tensor) -> float:
    return float((squared.sum() / x.square().sum()).sqrt())


def tied(x: Tensor) -> Tensor:
    """Squared error of nine equally spaced levels: 65 scales tried, each refitted by least squares."""
    best = torch.full((len(x),), torch.inf)
    for i in range(65):
        codes = (x / x.abs().amax(1, keepdim=True) * (3.25 + i / 32)).round().clamp(-4, 4)
        scale = (codes * x).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True)
        best = torch.minimum(best, (x - scale * codes).square().sum(1))
    return best


# --- 1. the card's own figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("kind", CARD)
def test_errors_are_those_of_the_card_or_smaller(kind: str, planes: int):
    """Smaller: ours has a second start, which three planes gain a fifth from. No nine levels do better than the best nine."""
    x = groups(kind)
    found = relative(x, squares(x, TritPlanes(planes)))
    assert 0.7 * CARD[kind][planes] < found <= 1.02 * CARD[kind][planes]


@pytest.mark.parametrize("kind", CARD)
def test_two_planes_lie_between_three_bits_and_four_and_below_the_tied_grid(kind: str):
    x = groups(kind)
    two, even = squares(x, TritPlanes(2)), tied(x)
    three_bits, four_bits = (relative(x, squares(x, Integer(n, by=by))) for n, by in ((8, Mse(2.0)), (16, Mse(2.0))))
    assert four_bits < relative(x, two) < three_bits
    assert (two <= even * (1 + 1e-3)).all()  # its scales are free; those of planes are rounded to fp16
    assert relative(x, two) < relative(x, even)


def test_sums_of_two_planes_are_recovered():
    x = 0.3 * torch.randint(-1, 2, (200, 128)).float() + 0.1 * torch.randint(-1, 2, (200, 128)).float()
    left = (squares(x, TritPlanes(2, scale=Float("float32"))) / x.square().sum(1)).sqrt()
    assert (left < 1e-5).float().mean() >= 0.95


@pytest.mark.parametrize("kind", CARD)
@pytest.mark.parametrize("planes", [1, 2, 3])
def test_no_round_raises_the_error_of_any_group(kind: str, planes: int):
    x = groups(kind, 30).double()
    rounds = torch.stack([squares(x, TritPlanes(planes, iters=n, scale=Float("float32"))) for n in (1, 2, 3, 5, 8, 13, 21, 34, 50)])
    assert (rounds.diff(dim=0) <= 1e-6 * rounds[:-1]).all()
    assert (rounds[-1] < rounds[0]).float().mean() > 0.25


def test_no_plane_is_dead():
    """Planes that stay equal for ever leave three values of nine, and the error of one plane."""
    x = groups("gaussian", 200)
    p = TritPlanes(2).fit(x)
    assert all(len(row.unique()) > 3 for row in TritPlanes(2).encode(x, p))
    assert (squares(x, TritPlanes(2)) < 0.5 * squares(x, TritPlanes(1))).all()


# --- 4. packing --------------------------------------------------------------------------------------------------------------


def test_every_word_of_trits_and_of_pairs_of_trits_comes_back():
    for levels, size in ((3, 1), (9, 2)):
        words = torch.tensor(list(product(range(levels), repeat=5)), dtype=torch.uint8)
        data = pack.pack(words, levels)
        assert data.shape == (levels**5, size) and len(data.unique(dim=0)) == levels**5
        assert torch.equal(pack.unpack(data, levels, 5), words)


def test_two_planes_cost_what_the_card_counts():
    """3.2 bits where rows hold whole words of five, and 2 x 16 bits for a group of 128."""
    (term,) = Coder.fit(torch.randn(4, 640), [Band(TritPlanes(2), Layout(1, 128))]).terms(torch.randn(4, 640))
    assert stored_bits((term,)) / (4 * 640) == 3.45


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_a_product_with_packed_planes_is_the_dense_product(planes: int):
    W, x = torch.randn(24, 384), torch.randn(10, 384)
    (term,) = Coder.fit(W, [Band(TritPlanes(planes), Layout(1, 128))]).terms(W)
    module = CodedLinear([term.meta()])
    module.load_state_dict({f"terms.0.{name}": t.clone() for name, t in term.tensors().items()}, assign=True)
    trits = torch.tensor([[(int(c) // 3**k) % 3 - 1 for k in range(planes)] for c in range(3**planes)])
    assert sorted(map(tuple, trits.tolist())) == sorted(map(tuple, term.grid.patterns(W).int().tolist()))
    assert torch.equal(load(term.meta(), term.tensors()).decode(), term.decode())
    parts = term.grid.patterns(W)[term.codes.long()]  # [out, inp, planes]
    scales = term.params["scale"].float().view(24, 3, planes)
    by_planes = torch.einsum("tgi,ogip,ogp->to", x.view(10, 3, 128), parts.view(24, 3, 128, planes), scales)
    bound = x.norm(dim=1)[:, None] * term.decode().norm(dim=1)
    assert ((module(x) - by_planes).abs() <= 1e-5 * bound).all()
    assert ((module(x.half()).float() - by_planes).abs() <= 2e-3 * bound).all()


# --- 3. zoo:lm ---------------------------------------------------------------------------------------------------------------


@pytest.mark.acceptance
def test_two_planes_lie_between_three_and_four_bits_in_perplexity_and_three_are_near_the_float_model():
    """Three bits with absmax ranges; with searched ones they are as good as two planes in perplexity."""
    ids = text_windows("zoo:lm", "stdlib", 32, 512, "evaluation").ids
    chosen = {
        "three bits": recipes.rtn(bits=3, group=128, mse=False),
        "four bits": recipes.rtn(bits=4, group=128, mse=False),
        "two planes": recipes.ptqtp(planes=2),
        "three planes": recipes.ptqtp(planes=3),
    }
    found = {name: perplexity.nll(bitwright.compress("zoo:lm", r)[0], ids).mean().exp() for name, r in chosen.items()}
    assert found["four bits"] < found["two planes"] < found["three bits"]
    assert found["three planes"] <= 1.03 * perplexity.nll(bitwright.load(zoo.path("lm")), ids).mean().exp()


@pytest.mark.acceptance
@pytest.mark.xfail(reason="a tie, decided by the order of sums: 22.47 against 22.44 on one machine, 22.44 against 22.47 on another")
def test_two_planes_beat_three_bits_on_searched_ranges_in_perplexity():
    ids = text_windows("zoo:lm", "stdlib", 32, 512, "evaluation").ids
    planes, bits = (
        perplexity.nll(bitwright.compress("zoo:lm", r)[0], ids).mean().exp()
        for r in (recipes.ptqtp(), recipes.rtn(bits=3, group=128))
    )
    assert planes < bits
