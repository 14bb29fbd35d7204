"""Card bitstack: residuals that fall as measured there, one artefact at any size, plain SVD and nearest rounding beaten, a prefix
that is what building that size gives."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.allocation.base import Allocation
from bitwright.allocation.stack import Stack, falls, measured, weighed
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.rounding.bitstack import BitStack, input_scale
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import Terms, stored_bits

GAUSSIAN = {  # size, directions -> what the card's author measured
    (1024, 16): (0.585, 0.342, 0.219, 0.153, 0.117, 0.096, 0.082, 0.071),
    (384, 4): (0.592, 0.348, 0.227, 0.162, 0.128),
}


def built(W: Tensor, H: Tensor, stack: BitStack) -> Terms:
    return stack(W, Coder.fit(W, [Band(Integer(4), Layout(1, None))]), Known({"gram": H}))


def scaled(W: Tensor, H: Tensor, terms: Terms) -> list[float]:
    """Norms of the residuals in the scaled domain, as shares of the start."""
    s, rest, found = input_scale(H), W.double(), []
    for term in terms:
        rest = rest - term.decode().double()
        found.append(float((rest * s).norm() / (W * s).norm()))
    return found


def plain_svd(W: Tensor, H: Tensor, bits: int) -> float:
    """What is left by one product of fp16 factors that takes so many bits, in the same scaled domain."""
    s, (out, inp) = input_scale(H), W.shape
    values = torch.linalg.svdvals(W * s)
    return float(values[bits // (16 * (out + inp)) :].norm() / values.norm())


# --- 1. monotone -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, rank", GAUSSIAN)
def test_on_gaussian_matrices_the_residual_falls_as_on_the_card(size: int, rank: int) -> None:
    W, told = torch.randn(size, size), GAUSSIAN[size, rank]
    assert scaled(W, torch.eye(size), built(W, torch.eye(size), BitStack(len(told), rank))) == pytest.approx(told, rel=0.03)


def test_every_block_lowers_the_scaled_residual_and_beats_plain_svd(problem: Any) -> None:
    for seed in range(4):
        W, H = problem(96, 128, seed, loud=0)
        terms = built(W, H, BitStack(8))
        left = scaled(W, H, terms)
        assert left[0] < 1 and all(after < before for before, after in pairwise(left))
        assert all(left[i] < plain_svd(W, H, stored_bits(terms[: i + 1])) for i in range(8))


def test_the_scale_is_what_counts_where_inputs_differ(problem: Any) -> None:
    """The card's ablation: without it the same stack is far worse; and it is stored nowhere."""
    W, H = problem(64, 128, loud=6)
    with_scale, without = built(W, H, BitStack(3)), built(W, torch.eye(128), BitStack(3))
    assert scaled(W, H, with_scale)[-1] < 0.95 * scaled(W, H, without)[-1]
    assert stored_bits(with_scale) == stored_bits(without)


def test_inputs_that_never_fire_and_weights_of_zero_do_no_harm() -> None:
    W, H = torch.randn(16, 24), torch.eye(24)
    H[3, 3] = 0
    W[:, 5] = 0
    for moments in (H, torch.zeros(24, 24)):
        left = scaled(W, moments, built(W, moments, BitStack(6, 4)))
        assert all(after < before for before, after in pairwise(left))
    assert all(torch.count_nonzero(term.decode()) == 0 for term in built(0 * W, H, BitStack(2)))


def test_directions_cost_a_third_of_a_bit_at_most_and_no_more_than_sixteen() -> None:
    for (out, inp), rank in {(384, 384): 4, (4096, 4096): 16, (256, 256): 3, (8, 16): 1}.items():
        (meta,) = BitStack(1).metas((out, inp), ())
        assert meta["rank"] == rank
        assert stored_bits((meta,)) == out * inp + 16 * rank * (out + inp)


def test_codes_below_the_signs_are_those_of_the_first_rounding(problem: Any) -> None:
    W, H = problem(32, 64)
    coder, known = Coder.fit(W, [Band(Integer(4), Layout(1, 16))]), Known({"gram": H})
    codes, *signs = BitStack(3, 2, first=GPTQ())(W, coder, known)
    assert torch.equal(codes.decode(), GPTQ()(W, coder, known)[0].decode()) and len(signs) == 3
    left = scaled(W, H, (codes, *signs))
    assert all(after < before for before, after in pairwise(left))


# --- 2. one order ------------------------------------------------------------------------------------------------------------

GAINS = {"a": [5.0, 0.5, 0.1], "b": [1.0, 0.9, 0.8], "c": [3.0, 2.0], "d": []}
SIZES = {"a": [10, 10, 10], "b": [1, 1, 1], "c": [10, 10], "d": []}


def test_level_by_level_the_best_goes_first() -> None:
    told = [("a", 2), ("c", 2), ("b", 2), ("c", 3), ("b", 3), ("a", 3), ("b", 4), ("a", 4)]
    assert Stack(per_byte=False).order(GAINS, SIZES) == told
    assert Stack().order(GAINS, SIZES)[:3] == [("b", 2), ("a", 2), ("c", 2)]  # a tenth of the bytes for a fifth of the gain
    assert Stack(gap=None).order(GAINS, SIZES)[:3] == [("b", 2), ("b", 3), ("b", 4)]


@pytest.mark.parametrize("gap", [1, 2, 3, None])
def test_no_matrix_runs_ahead_and_every_term_comes_once(gap: int | None) -> None:
    gains = {f"m{i}": torch.rand(4 + i % 3).tolist() for i in range(9)}
    order = Stack(gap=gap).order(gains, {name: [7] * len(more) for name, more in gains.items()})
    have = dict.fromkeys(gains, 1)
    for name, terms in order:
        assert terms == have[name] + 1
        have[name] = terms
        unfinished = [count for other, count in have.items() if count <= len(gains[other])]
        assert gap is None or not unfinished or max(unfinished) - min(unfinished) <= gap
    assert have == {name: len(more) + 1 for name, more in gains.items()}


def test_a_level_that_cannot_be_measured_is_ordered_as_the_next() -> None:
    gains = {"a": [math.nan, 1.0, math.inf], "b": [2.0, 3.0, 1.0], "c": [9.0, 2.0, 1.0]}
    order = Stack(per_byte=False).order(gains, {name: [1, 1, 1] for name in gains})
    levels = [[name for name, terms in order if terms == level] for level in (2, 3, 4)]
    assert levels[0] == levels[1] == ["b", "c", "a"] and sorted(levels[2]) == ["a", "b", "c"]


def test_gains_are_counted_from_errors_sensitivities_and_scores() -> None:
    errors = {"a": [0.5, 0.25, 0.125], "b": [0.4, 0.1, 0.0]}
    units = {"a": 1.0, "b": 100.0}

    def score(prefix: Any) -> float:
        return 7 + sum(units[name] * errors[name][terms - 1] for name, terms in prefix.items())

    assert falls(errors)["b"] == pytest.approx([0.3, 0.1])
    for found in (measured({"a": 3, "b": 3}, score), weighed(errors, score)):
        assert found["a"] == pytest.approx([0.25, 0.125]) and found["b"] == pytest.approx([30.0, 10.0])


def test_a_stack_is_an_allocation() -> None:
    stack, counts = Stack(per_byte=False), torch.tensor([[1, 2, 3], [1, 2, 3]])
    assert isinstance(stack, Allocation)
    loss = torch.tensor([[8.0], [1.0]]).double() / counts
    spent = [(stack(loss, counts, budget) + 1).tolist() for budget in (2, 3, 4, 5, 99)]
    assert spent == [[1, 1], [2, 1], [2, 2], [3, 2], [3, 3]]


# --- 3. any size -------------------------------------------------------------------------------------------------------------


# --- zoo:lm ------------------------------------------------------------------------------------------------------------------


@pytest.mark.acceptance
def test_on_every_linear_the_residual_falls_and_plain_svd_is_beaten(linears: list[tuple[Tensor, Tensor]]) -> None:
    """Real weights do no worse than Gaussian ones of their shape."""
    for W, H in linears:
        terms = built(W, H, BitStack(8))
        left = scaled(W, H, terms)
        assert all(after < before for before, after in pairwise(left))
        assert all(left[i] < plain_svd(W, H, stored_bits(terms[: i + 1])) for i in range(8))
        noise = torch.randn_like(W)
        assert left[0] <= 1.03 * scaled(noise, torch.eye(W.shape[1]), built(noise, torch.eye(W.shape[1]), BitStack(1)))[0]
