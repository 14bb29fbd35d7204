"""Card squeezellm: the exact optimum against Lloyd and RTN, weights kept exact, bytes as told, the order of methods on a model."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes
from bitwright.calibrate.gradients import gradients
from bitwright.calibrate.stats import Known
from bitwright.calibrate.text import text_windows
from bitwright.checkpoint import open_checkpoint
from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest, Decoded
from bitwright.evaluation import perplexity
from bitwright.grids.integer import Integer
from bitwright.grids.kmeans import KMeans
from bitwright.grids.points import Points
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.models.llama import wiring
from bitwright.progress import silent
from bitwright.rounding.dense_and_sparse import DenseAndSparse
from bitwright.rounding.quantease import QuantEase
from bitwright.terms.base import Terms, decode, stored_bits
from bitwright.terms.sparse import Sparse

ROWS = Layout(1, None)


def rows(out: int = 12, inp: int = 512) -> tuple[Tensor, Tensor]:
    """The card's own check: normal weights, log-normal prices."""
    return torch.randn(out, inp), torch.exp(2 * torch.randn(out, inp))


def damage(x: Tensor, F: Tensor, found: Tensor) -> Tensor:
    """Weighted squared error of every row."""
    return ((x - found).double().square() * F).sum(1)


def coded(x: Tensor, grid: Points | Integer, F: Tensor) -> Tensor:
    p = grid.fit(x, F)
    return grid.decode(grid.encode(x, p), p)


def lloyd(x: Tensor, F: Tensor, count: int, rounds: int = 50) -> Tensor:
    """One k-means++ start and Lloyd's rounds, as the released code runs it: what each number of a row becomes."""
    found = []
    for row, price in zip(x, F):
        points = row[torch.multinomial(price, 1)]
        while len(points) < count:
            gap = (row[:, None] - points).abs().amin(1)
            points = torch.cat([points, row[torch.multinomial(price * gap.square(), 1)]])
        for _ in range(rounds):
            own = (row[:, None] - points).abs().argmin(1)
            mass, pull = (torch.zeros(count).index_add_(0, own, part) for part in (price, price * row))
            points = torch.where(mass > 0, pull / mass.clamp_min(1e-30), points)
        found.append(points[(row[:, None] - points).abs().argmin(1)])
    return torch.stack(found)


# --- 1. the solver -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_other_runs_of_the_sorted_numbers_do_better(count: int):
    """Every way to cut nine numbers into runs, some of them free of charge, some equal."""
    x, F = torch.randn(40, 9).double().sort(1).values, torch.rand(40, 9).double()
    F[:, 4], x[:, 6] = 0, x[:, 7]
    points = dispatch.kmeans(x, F, count)
    found = (F * (x[:, :, None] - points[:, None]).square().amin(2)).sum(1)
    assert (points.diff(dim=1) >= 0).all()
    for row in range(40):
        best = min(
            sum(run_cost(x[row, i:j], F[row, i:j]) for i, j in zip((0, *cuts), (*cuts, 9)))
            for cuts in combinations(range(1, 9), count - 1)
        )
        assert float(found[row]) == pytest.approx(best, rel=1e-9, abs=1e-12)


def run_cost(x: Tensor, F: Tensor) -> float:
    return float((F * (x - (F * x).sum() / F.sum()).square()).sum()) if F.sum() > 0 else 0.0


@pytest.mark.parametrize("count", [2, 8, 16])
def test_the_compiled_program_is_the_plain_one(count: int):
    x, F = rows(6, 96)
    x, F = x.double().sort(1).values, F.double()
    F[:, ::7] = 0
    F[2] = 0
    ways = []
    for name in ("numba", "reference"):
        with dispatch.only(name):
            ways.append(dispatch.kmeans(x, F, count))
    losses = [(F * (x[:, :, None] - points[:, None]).square().amin(2)).sum(1) for points in ways]
    assert torch.allclose(losses[0], losses[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits, most", [(3, 0.35), (4, 0.3)])
def test_it_is_never_above_lloyd_and_far_below_nearest_rounding(bits: int, most: float):
    x, F = rows()
    exact = damage(x, F, coded(x, Points(2**bits, KMeans(), "float32"), F))
    runs = torch.stack([damage(x, F, lloyd(x, F, 2**bits)) for _ in range(3)])
    assert (exact <= runs * (1 + 1e-5)).all() and runs.mean() > 1.02 * exact.mean()
    assert float(exact.sum() / damage(x, F, coded(x, Integer(2**bits), F)).sum()) <= most
    even = damage(x, F, coded(x, Points(2**bits, KMeans("even")), F))
    assert exact.sum() < 0.8 * even.sum()


def test_columns_of_no_weight_and_rows_of_no_weight_leave_finite_points():
    x, F = rows(4, 64)
    F[0], F[1, :60], F[2, 5] = 0, 0, 0
    assert torch.isfinite(Points(8).fit(x, F)["points"]).all()
    even = Points(8, KMeans("even")).fit(x[:1])["points"]
    assert torch.equal(Points(8).fit(x[:1], F[:1])["points"], even)


def test_it_places_no_other_grid():
    with pytest.raises(BadRequest, match="free points"):
        Integer(8, by=KMeans("even"))


# --- 3. dense and sparse -----------------------------------------------------------------------------------------------------


def solved(W: Tensor, F: Tensor, rounding: DenseAndSparse, bits: int = 3) -> Terms:
    return rounding(W, Coder.fit(W, [Band(Points(2**bits), ROWS)], F), Known({"fisher": F}))


def heavy(out: int = 64, inp: int = 256) -> tuple[Tensor, Tensor]:
    W, F = rows(out, inp)
    return W * (0.3 + torch.randn(out, inp).square()) / 50, F * 1e-6


def test_what_leaves_stays_exact_and_is_as_much_as_was_told():
    W, F = heavy()
    rounding = DenseAndSparse(0.005, 0.01)
    dense, sparse = solved(W, F, rounding)
    kept = sparse.decode() != 0
    assert isinstance(sparse, Sparse) and len(sparse.values) == round(0.005 * W.numel()) + round(0.01 * W.numel())
    gap = (W - decode((dense, sparse)))[rounding.taken(W, Known({"fisher": F}))].abs()
    assert (gap <= 2.0**-11 * (W - dense.decode()).abs().max()).all()
    assert kept.flatten()[F.flatten().topk(round(0.005 * W.numel())).indices].float().mean() > 0.99
    assert not torch.equal(dense.params["points"], Coder.fit(W, [Band(Points(8), ROWS)], F).params[0]["points"])


def test_no_point_is_spent_on_what_left():
    """A row whose outliers have gone is served as if they had never been there: no point is drawn to their place, 0."""
    W, F = torch.rand(4, 64) + 1, torch.ones(4, 64)
    W[:, :4] = 50.0
    dense, _ = solved(W, F, DenseAndSparse(0.0, 4 / 64))
    assert (dense.params["points"] >= 1).all()
    alone = Coder.fit(W[:, 4:], [Band(Points(8), ROWS)], F[:, 4:]).params[0]
    assert torch.equal(dense.params["points"], alone["points"])


@pytest.mark.parametrize("shares", [(0.0005, 0.004), (0.005, 0.0), (0.0, 0.01)])
def test_sparse_weights_lower_the_damage_of_every_matrix(shares: tuple[float, float]):
    for seed in range(4):
        torch.manual_seed(seed)
        W, F = heavy()
        with_, without = (damage(W, F, decode(solved(W, F, DenseAndSparse(*s)))).sum() for s in (shares, (0.0, 0.0)))
        assert with_ < without


def test_a_matrix_too_small_for_one_sensitive_weight_is_no_error():
    W, F = heavy(8, 16)
    assert len(solved(W, F, DenseAndSparse(0.0005, 0.0))) == 1


def test_the_product_of_tables_and_list_is_the_dense_product():
    W, F = heavy()
    terms = solved(W, F, DenseAndSparse(0.001, 0.01))
    module = CodedLinear([t.meta() for t in terms])
    tensors = {f"terms.{i}.{name}": t.clone() for i, term in enumerate(terms) for name, t in term.tensors().items()}
    module.load_state_dict(tensors, assign=True)
    x = torch.randn(5, W.shape[1])
    exact = x @ decode(terms).T
    with pytest.warns(Decoded, match="points of their own"):
        assert (module(x) - exact).norm() <= 1e-3 * exact.norm()


def test_bits_are_those_of_the_card():
    """Rows of 4096 at 3 bits: 3.03 for codes and tables; 0.45 % more cost a value and an index each and 32 bits a row."""
    recipe, shape = recipes.squeezellm(), (64, 4096)
    dense, whole = (
        stored_bits(r.metas(shape, [Band(recipe.grid, recipe.layout)])) / (64 * 4096)
        for r in (DenseAndSparse(0.0, 0.0), recipe.rounding)
    )
    assert dense == 3 + 16 * 8 / 4096
    assert whole - dense == pytest.approx(0.0045 * 32 + 32 / 4096, abs=0.001)


def test_coordinate_descent_takes_the_points_as_they_are(problem):
    W, H = problem(24, 64)
    coder = Coder.fit(W, [Band(Points(8, KMeans("diagonal")), ROWS)], H.diagonal())
    known = Known({"gram": H})
    near, better = coder.terms(W), QuantEase(iters=4)(W, coder, known)
    assert objective(W - decode(better), H) < objective(W - decode(near), H)


# --- 2, 4. zoo:lm ------------------------------------------------------------------------------------------------------------


@pytest.mark.acceptance
def test_on_the_model_weighted_beats_unweighted_beats_nearest_and_sparse_beats_dense():
    data = bitwright.calibration("zoo:lm", samples=16)
    ids = text_windows("zoo:lm", "stdlib", 32, 512, "evaluation").ids
    tried = {
        "rtn": recipes.rtn(bits=3, group=None, mse=False),
        "gptq": recipes.gptq(bits=3, group=None),
        "even": recipes.squeezellm(sparse=0, price="even"),
        "fisher": recipes.squeezellm(sparse=0),
        "sparse": recipes.squeezellm(),
    }
    found = {}
    for name, recipe in tried.items():
        model, report = bitwright.compress("zoo:lm", recipe, data if recipe.needs else None)
        found[name] = float(perplexity.nll(model, ids).mean().exp())
        print(name, found[name], report.bpw_linears)
    assert found["sparse"] < found["fisher"] < found["even"] < found["rtn"], found
    assert found["fisher"] <= 1.02 * found["gptq"], found


@pytest.fixture(scope="module")
def priced() -> list[tuple[Tensor, Tensor]]:
    """(W, F) of every linear of zoo:lm."""
    source = open_checkpoint("zoo:lm")
    data = bitwright.calibration("zoo:lm", samples=4)
    found = gradients(source, wiring(source.config), data, torch.device("cpu"), silent)
    return [(source.tensor(f"{name}.weight").float(), values["fisher"]) for name, values in found]


@pytest.mark.acceptance
def test_on_every_row_of_the_linears_it_is_below_lloyd_and_sparse_never_raises_the_damage(priced):
    for W, F in priced:
        dense, whole = (damage(W, F, decode(solved(W, F, r))).sum() for r in (DenseAndSparse(0.0, 0.0), DenseAndSparse()))
        assert whole <= dense
        exact = damage(W[:8], F[:8], coded(W[:8], Points(8, KMeans(), "float32"), F[:8]))
        assert (exact <= damage(W[:8], F[:8], lloyd(W[:8], F[:8], 8)) * (1 + 1e-5)).all()


@pytest.mark.acceptance
@pytest.mark.parametrize("bits, most", [(3, 0.35), (4, 0.3)])
@pytest.mark.xfail(
    strict=True, reason="0.42 and 0.40 here: weights are nearly normal, and the logs of prices deviate by 0.94 in a row"
)
def test_on_the_median_linear_it_leaves_a_third_of_nearest_rounding(bits: int, most: float, priced):
    ratios = [
        damage(W, F, coded(W, Points(2**bits), F)).sum() / damage(W, F, coded(W, Integer(2**bits), F)).sum() for W, F in priced
    ]
    assert float(torch.stack(ratios).median()) <= most
