"""FlexRound (card: flexround) and LRQ (card: lrq): acceptance checks. Gradients are a law (tests/laws/joint.py)."""

from statistics import median

import pytest
import torch
from contest import Results, contest
from matrices import INP, OUT, fitted, known, same

from bitwright.grids.fit import AbsMax, Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.rounding.flexround import Divided, FlexRound
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.lrq import Lrq
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import decode
from bitwright.training.loop import Training
from bitwright.training.problem import Subject

ROWS = Layout(1, None)


@pytest.mark.parametrize("make", [lambda s: Divided.full(s, 1e-3), lambda s: Lrq().shared(s, 0)], ids=["flexround", "lrq"])
@pytest.mark.parametrize("by", [AbsMax(), Mse()], ids=["absmax", "mse"])
def test_the_start_is_nearest_rounding_bit_for_bit(make, by, problem):
    W, H = problem(OUT, INP)
    plain = Nearest()(W, fitted(W, H, Integer(8, by=by)), known(H))
    variable = make(Subject(W, plain, known(H)))
    assert same(variable.terms(), plain) and torch.equal(variable.weight().detach(), decode(plain))


def test_full_rank_reaches_any_divisor(problem):
    W, H = problem(OUT, INP)
    subject = Subject(W, Nearest()(W, fitted(W, H, Integer(8)), known(H)), known(H))
    shared, wanted = Lrq(share=10.0).shared(subject, 0), torch.randn(OUT, INP)
    L, U = shared.factors[:2]
    assert L.shape[1] == min(OUT, INP)
    with torch.no_grad():
        if OUT <= INP:
            L.copy_(wanted @ torch.linalg.pinv(U))
            U.copy_(torch.linalg.lstsq(L, wanted).solution)
    torch.testing.assert_close(shared.divisor().detach(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.acceptance
def test_flexround_on_the_blocks_of_a_small_llama() -> None:
    """Checks 2 and 4: int3 per row. Held-out block error <= 0.7 of nearest rounding, at most GPTQ's on 70 % of the blocks,
    and learning the ranges helps on 80 %."""
    train = Training(steps=2000)
    methods = {"flexround": FlexRound(training=train), "fixed": FlexRound(ranges=False, training=train), "gptq": GPTQ()}
    found = contest(methods, Integer(8, by=Mse()), ROWS, samples=128)
    ratio = {name: [b / a for a, b in zip(found.errors["start"], errors)] for name, errors in found.errors.items()}
    print({name: [round(r, 3) for r in values] for name, values in ratio.items()})
    assert max(ratio["flexround"]) <= 0.7
    assert sum(f <= g for f, g in zip(ratio["flexround"], ratio["gptq"])) >= 0.7 * len(ratio["gptq"])
    assert sum(f <= g for f, g in zip(ratio["flexround"], ratio["fixed"])) >= 0.8 * len(ratio["fixed"])


@pytest.fixture(scope="module")
def few() -> Results:
    """FlexRound, LRQ and ranges alone, learned from few sequences."""
    last = Training(steps=1000, keep="last")
    scales = Lrq(share=0.0, rate=1e-3, training=last)
    methods = {"flexround": FlexRound(1e-3, training=last), "lrq": Lrq(0.3, 1e-3, training=last), "scales": scales}
    return contest(methods, Integer(8, by=Mse()), ROWS, samples=64)


@pytest.mark.acceptance
def test_lrq_generalises_from_few_sequences_and_fits_less_than_flexround(few: Results) -> None:
    """Checks 2 and 3 of card lrq: with few sequences the gap between held-out and calibration error is smaller on 80 % of the
    blocks; on the calibration data FlexRound <= LRQ <= ranges alone on 90 %."""
    gaps = {name: [h - t for h, t in zip(few.errors[name], few.trained[name])] for name in few.methods}
    print({name: (median(few.errors[name]), median(few.trained[name])) for name in few.methods})
    blocks = len(gaps["lrq"])
    ordered = [a <= b <= c for a, b, c in zip(few.trained["flexround"], few.trained["lrq"], few.trained["scales"])]
    assert sum(ordered) >= 0.9 * blocks
    assert sum(a <= b for a, b in zip(gaps["lrq"], gaps["flexround"])) >= 0.8 * blocks


@pytest.mark.acceptance
@pytest.mark.xfail(
    strict=True, reason="on none of six blocks, medians 218.7 and 194.8: LRQ does not gain back what it loses in fit"
)
def test_lrq_is_below_flexround_on_held_out_sequences(few: Results) -> None:
    """The other half of check 2: on 60 % of the blocks."""
    below = [a <= b for a, b in zip(few.errors["lrq"], few.errors["flexround"])]
    assert sum(below) >= 0.6 * len(below)
