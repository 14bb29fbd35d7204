"""Column loops: no block size and no kernel changes a code, and degenerate data breaks none of them."""

from itertools import product

import pytest
import torch
from matrices import INP, OUT, bands_of, fitted, known, loss, mixed, same
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.offset import Offset
from bitwright.grids.ragged import Ragged
from bitwright.grids.second_level import SecondLevel
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase
from bitwright.rounding.quantease_outlier import QuantEaseOutlier
from bitwright.terms.base import decode


def dynamic(rounding: Rounding) -> bool:
    """Ranges placed on weights that later steps still move may clip them: no law against nearest."""
    return getattr(rounding, "groups", None) == "dynamic"


# --- block sizes and kernels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order, groups", list(product(("descending", "natural", "group-aware"), ("static", "dynamic"))))
@pytest.mark.parametrize("kind", ["rows", "groups", "pairs", "two"])
def test_the_block_size_of_gptq_changes_no_code(order: str, groups: str, kind: str, problem):
    W, H = problem(8, 48, dtype=torch.float64)
    bands = {
        "rows": [Band(Integer(4), Layout(1, None))],
        "groups": [Band(TritPlanes(), Layout(1, 24))],
        "pairs": [Band(Table("roots4"), Layout(2, 12))],
        "two": mixed(48),
    }[kind]
    coder = Coder.fit(W, bands)
    one, *others = [GPTQ(order, groups, block=block)(W, coder, known(H)) for block in (1, 7, 32, 128, 48)]
    for other in others:
        assert same(one, other)


def test_dynamic_groups_are_fitted_once_to_the_weights_as_compensated_so_far(problem):
    """By hand: groups in natural order, each fitted when reached, then rounded column by column."""
    W, H = problem(4, 24, dtype=torch.float64)
    grid, damped = Integer(4), H + torch.eye(24, dtype=H.dtype) * 0.01 * H.diagonal().mean()
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    rest, Q = W.clone(), torch.empty_like(W)
    for j in range(24):
        if j % 8 == 0:
            p = grid.fit(rest[:, j : j + 8])
        Q[:, j : j + 1] = grid.decode(grid.encode(rest[:, j : j + 1], p), p)
        rest[:, j:] -= (rest[:, j : j + 1] - Q[:, j : j + 1]) / U[j, j] * U[j, j:]
    for block in (1, 4, 8, 128):
        coder = Coder.fit(W, [Band(grid, Layout(1, 8))])
        found = GPTQ("natural", "dynamic", block=block)(W, coder, known(H))
        assert torch.equal(decode(found).double(), Q)


OFFSETS = [Offset(4), Offset(16, scale=SecondLevel(64, 1), minimum=SecondLevel(64, 1, least=0))]
SCALAR = [
    Integer(4),
    Integer(9, True),
    Integer(256),
    *OFFSETS,
    Table("nf4"),
    Table("ternary"),
    TritPlanes(),
    TritPlanes(3),
    Ragged(2.4),
]


@pytest.mark.parametrize("rounding", [GPTQ(), GPTQ("natural", "dynamic"), QuantEase(iters=6), QuantEaseOutlier(0.02, 2)], ids=str)
@pytest.mark.parametrize("grid", SCALAR, ids=str)
@pytest.mark.parametrize("kind", ["one", "two"])
def test_compiled_loops_are_the_reference(rounding: Rounding, grid: Grid, kind: str, problem):
    bands = bands_of(kind, grid)
    for dtype in (torch.float64, torch.float32):
        W, H = problem(OUT, INP, dtype=dtype)
        coder = Coder.fit(W, bands)
        found = []
        for name in ("reference", "numba"):
            with dispatch.only(name):
                found.append(rounding(W, coder, known(H)))
        if dtype == torch.float64:
            assert same(*found)
        ours, theirs = (loss(W, terms, H) for terms in found)
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_compiled_loops_decline_vectors_and_forcing_them_says_so(problem):
    W, H = problem(OUT, INP)
    coder = fitted(W, H, Table("roots4"))
    for rounding in (GPTQ(), QuantEase(iters=2)):
        with dispatch.only("numba"), pytest.raises(NotImplementedError, match="numba"):
            rounding(W, coder, known(H))
        assert len(rounding(W, coder, known(H))) == 1  # the reference takes over by itself


# --- degenerate data ---------------------------------------------------------------------------------------------------------


def degenerate(kind: str, H: Tensor) -> Tensor:
    n = len(H)
    if kind == "dead inputs":
        live = (torch.arange(n) % 3 > 0).float()
        return live[:, None] * H * live
    if kind == "rank one":
        return torch.outer(H[0], H[0])
    if kind == "low rank":
        x = torch.randn(5, n)
        return x.T @ x / 5
    if kind == "nothing":
        return torch.zeros_like(H)
    if kind == "one live input":
        return torch.diag(torch.nn.functional.one_hot(torch.tensor(3), n).float())
    if kind == "a wide range":
        gain = 10 ** torch.linspace(-6, 6, n)
        return gain[:, None] * H * gain
    return H * {"tiny": 1e-12, "minute": 1e-30, "huge": 1e12}[kind]


KINDS = ["dead inputs", "rank one", "low rank", "nothing", "one live input", "a wide range", "tiny", "minute", "huge"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [Integer(4), Table("roots4")], ids=["integer", "roots4"])
def test_degenerate_moments_give_finite_terms_no_worse_than_nearest(rounding: Rounding, grid: Grid, kind: str, problem, within):
    W, H = problem(OUT, INP)
    H = degenerate(kind, H)
    coder, facts = fitted(W, H, grid), known(H)
    with within(10):
        terms = rounding(W, coder, facts)
    assert [dict(m) for m in rounding.metas((OUT, INP), coder.bands)] == [t.meta() for t in terms]
    assert torch.isfinite(decode(terms)).all()
    assert dynamic(rounding) or loss(W, terms, H) <= loss(W, coder.terms(W), H) * 1.05 + 1e-35


@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_damping_that_had_to_be_raised_is_told(damp: float, problem):
    W, H = problem(OUT, INP)
    for kind in ("low rank", "rank one", "a wide range"):
        facts = known(degenerate(kind, H))
        GPTQ(damp=damp)(W, fitted(W, H, Integer(4)), facts)
        assert damp > 0 or any("damping raised" in note for note in facts.notes)
    facts = known(H)
    GPTQ(damp=damp)(W, fitted(W, H, Integer(4)), facts)
    assert not facts.notes


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_moments_that_are_not_finite_are_refused(rounding: Rounding, bad: float, problem, within):
    W, H = problem(OUT, INP)
    coder = fitted(W, H, Integer(4))
    H = H.clone()
    H[4, 4] = bad
    if not rounding.needs:
        assert same(rounding(W, coder, known(H)), rounding(W, coder, Known()))
        return
    with within(10), pytest.raises((ValueError, BadRequest), match="finite"):
        rounding(W, coder, known(H))
