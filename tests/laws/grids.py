"""Grids: codes are in range, coding is idempotent bit for bit, the nearest point is found, fits are finite and stored."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from bitwright.grids.base import Grid, Kin, points
from bitwright.grids.fit import AbsMax, Imatrix, Mse
from bitwright.grids.learned import Learned
from bitwright.grids.micro import E8M0
from bitwright.grids.offset import Offset
from bitwright.grids.scales import Float as FloatScale

N = 16  # numbers in a group
FINE = 2.0**-11  # half a unit in the last place of a stored fp16 scale; bf16: eight times that


@pytest.fixture
def groups() -> dict[str, Tensor]:
    """Groups of every kind that is met, two of each."""
    bell = torch.randn(2, N)
    loud = bell * 0.01
    loud[:, 3] = 5.0
    return {
        "bell": bell,
        "heavy": bell * torch.randn(2, N).square(),
        "positive": bell.abs() + 0.5,
        "negative": -bell.abs() - 0.5,
        "zeros": torch.zeros(2, N),
        "one value": torch.full((2, N), 0.37),
        "one negative value": torch.full((2, N), -0.37),
        "tiny": bell * 1e-7,
        "huge": bell.clamp(-2, 2) * 1e4,
        "an outlier": loud,
        "mostly zeros": torch.nn.functional.one_hot(torch.tensor([2, 7]), N) * -0.2,
    }


@pytest.fixture
def x(groups: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(groups.values()))


@pytest.fixture
def price(x: Tensor) -> Tensor:
    """The second moment of the input each number meets: over four decades, some are zero, one group has none at all."""
    found = 10 ** (4 * torch.rand(x.shape) - 2)
    found[:, 5] = 0
    found[1] = 0
    return found


PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


@PRECISIONS
def test_codes_are_in_range_and_coding_is_idempotent_bit_for_bit(grid: Grid, x, price, dtype):
    x = x.to(dtype)
    p = grid.fit(x, price.to(dtype))
    codes = grid.encode(x, p)
    assert codes.shape == (len(x), N // grid.width) and not codes.is_floating_point()
    assert int(codes.min()) >= 0 and int(codes.max()) < grid.levels
    stored = grid.decode(codes, p)
    assert stored.dtype == torch.float32 and torch.isfinite(stored).all()
    again = grid.decode(grid.encode(stored.to(dtype), p), p)
    assert torch.equal(again, stored)


@PRECISIONS
def test_encode_finds_the_nearest_point(grid: Grid, x, price, dtype):
    x = x.to(dtype)
    p = grid.fit(x, price.to(dtype))
    every = points(grid, p).to(dtype)  # [g, k, width]
    assert every.shape == (len(x), grid.levels, grid.width)
    gaps = (x.view(len(x), -1, 1, grid.width) - every[:, None]).norm(dim=-1)
    chosen = gaps.gather(2, grid.encode(x, p).long()[..., None])[..., 0]
    # decision points are computed in fp32: right on one, either neighbour will do
    slack = 4 * torch.finfo(torch.float32).eps * every.abs().amax((1, 2))[:, None]
    assert (chosen <= gaps.amin(2) + slack).all()


def test_parameters_are_finite_and_exactly_what_is_stored(grid: Grid, x, price):
    for numbers in (x, x.double()):
        p = grid.fit(numbers, price.to(numbers.dtype))
        assert set(p) == set(grid.leaves)
        for name, leaf in grid.leaves.items():
            assert p[name].shape == (len(x), leaf.count)
            if leaf.levels:
                assert not p[name].is_floating_point() and int(p[name].min()) >= 0 and int(p[name].max()) < leaf.levels
            else:
                assert p[name].dtype == leaf.dtype and torch.isfinite(p[name].float()).all()


def test_all_zero_groups_are_exactly_zero_or_as_near_as_the_grid_has_a_point(grid: Grid, groups):
    zeros = groups["zeros"]
    p = grid.fit(zeros)
    nearest = points(grid, p).norm(dim=-1).amin(1)
    stored = grid.decode(grid.encode(zeros, p), p)
    assert torch.equal(stored.view(len(zeros), -1, grid.width).norm(dim=-1), nearest[:, None].expand(-1, N // grid.width))


def test_the_step_follows_the_size_of_the_weights(grid: Grid, groups):
    """2^k times the weights: the same codes. Powers of two commute with every stored float that is not near its ends."""
    p, q = grid.fit(groups["bell"]), grid.fit(4 * groups["bell"])
    assert torch.equal(grid.encode(groups["bell"], p), grid.encode(4 * groups["bell"], q))


def squared(x: Tensor, found: Tensor, weight: Tensor) -> Tensor:
    return ((x - found).square() * weight).sum(1)


@pytest.mark.parametrize("fit", [Mse(steps=25), Imatrix(steps=25)], ids=["mse", "imatrix"])
def test_a_search_is_never_worse_than_absmax_on_its_own_criterion(grid: Grid, x, price, fit):
    if not {"by"} <= {f.name for f in fields(grid)}:
        pytest.skip("this grid places its points itself")
    plain = {"polish": 0} if "polish" in {f.name for f in fields(grid)} else {}
    searched, widest = replace(grid, by=fit, **plain), replace(grid, by=AbsMax(), **plain)

    def loss(one: Grid) -> Tensor:
        p = one.fit(x, price)
        gap = (one.decode(one.encode(x, p), p) - x).abs() ** fit.exponent
        if fit.needs:
            even = torch.where(price.sum(1, keepdim=True) > 0, price, 1.0)
            gap = gap * even * (x.square().mean(1, keepdim=True) + x.square()).sqrt()
        return gap.sum(1)

    found, wide = loss(searched), loss(widest)
    assert (found <= wide * (1 + 1e-5)).all()
    clipping = (
        getattr(getattr(grid, "scale", None), "rule", "up") != "up"
    )  # already below the largest weight: shrinking has nothing to find
    assert (found < wide).any() or grid.levels > 16 or clipping  # where points are few it finds something


def test_polish_is_never_worse_than_none_on_squared_error(grid: Grid, x):
    if not getattr(grid, "polish", 0):
        pytest.skip("nothing to polish")
    raw = replace(grid, polish=0)
    before, after = ((x - g.decode(g.encode(x, p), p)).square().sum(1) for g in (raw, grid) for p in [g.fit(x)])
    assert (after <= before * (1 + 1e-6)).all()


@pytest.mark.parametrize("codes", ["nearest", "random"])
def test_refit_is_never_worse_than_what_it_starts_from(grid: Grid, x, price, codes):
    """On squared error under the price it is given, whatever its unit, up to the rounding of what is stored."""
    p = grid.fit(x, price)
    c = grid.encode(x, p)
    if codes == "random":
        c = torch.randint(0, grid.levels, c.shape).to(c.dtype)
    for weight in (None, price, price * 2.0**-30, price * 2.0**30):
        d = torch.ones_like(x) if weight is None else torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
        q = grid.refit(x, c, p, weight)
        assert all(q[n].dtype == p[n].dtype and q[n].shape == p[n].shape for n in p)
        before, after = squared(x, grid.decode(c, p), d), squared(x, grid.decode(c, q), d)
        if isinstance(grid, Learned):  # its points belong to all groups: their sum is what a fit makes small
            priced = torch.ones(len(x), dtype=torch.bool) if weight is None or not grid.weighted else (weight > 0).any(1)
            before, after = (loss[priced].sum(0, keepdim=True) for loss in (before, after))
        before, after = before.sqrt(), after.sqrt()
        reach = points(grid, q).norm(dim=-1).amax(1)
        rounding = 8 * FINE * reach + 2.0**-25 * grid.levels  # subnormal fp16 scales are this far apart
        assert (after <= before * (1 + 1e-4) + rounding * d.sum(1).sqrt()).all()


def test_inputs_that_never_fired_count_evenly(grid: Grid, x):
    none, ones = grid.fit(x, torch.zeros_like(x)), grid.fit(x, torch.ones_like(x))
    assert all(torch.equal(none[name], ones[name]) for name in none)


def test_the_unit_of_the_price_does_not_matter(grid: Grid, x, price):
    one = grid.fit(x, price)
    for unit in (2.0**-20, 2.0**20):
        other = grid.fit(x, price * unit)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_grid_that_asks_for_no_statistic_ignores_prices(grid: Grid, x, price):
    if grid.needs:
        some = (price / price.max()) ** 8  # nearly all on a few places: no grid is too fine, no scale too coarse to show it
        assert any(not torch.equal(a, b) for a, b in zip(grid.fit(x, some).values(), grid.fit(x).values()))
    else:
        assert all(torch.equal(a, b) for a, b in zip(grid.fit(x, price).values(), grid.fit(x).values()))


def test_groups_see_each_other_only_through_what_they_share(grid: Grid, x, price):
    together = grid.fit(x, price)
    shared = [name for name, leaf in grid.leaves.items() if leaf.shared != 1]
    for i in range(1, len(x), 2):  # one of every kind, and the one that has no price
        alone = grid.fit(x[i : i + 1], price[i : i + 1], Kin(1, {name: together[name][i : i + 1] for name in shared}))
        assert all(torch.equal(together[name][i : i + 1], alone[name]) for name in together)


def test_what_groups_share_is_equal_in_them(grid: Grid, x, price):
    p, tiles = grid.fit(x, price, Kin(2)), (len(x) // 2, 2)
    for name, leaf in grid.leaves.items():
        assert torch.equal(leaf.spread(leaf.once(p[name], tiles), tiles), p[name])


def test_scales_are_stored_positive_and_once(scale):
    wanted = torch.tensor([[0.0], [1e-30], [1e-7], [0.1], [1.0], [3e4]])
    top = scale.top(wanted, 1.0, 1)
    assert (top is None) == (scale.shared is None)
    stored = scale.store(wanted, 1.0, top)
    assert stored.dtype == scale.own.dtype and (top is None or top.dtype == scale.shared.dtype)
    read = scale.read(stored, top)
    assert read.dtype == torch.float32 and (read > 0).all() and torch.isfinite(read).all()
    assert torch.equal(scale.store(read, 1.0, top), stored)
    ratio = read[3:] / wanted[3:]
    assert (ratio[-1] - 1).abs() < 0.5 if top is None else (ratio[-1] - 1).abs() < 2.0**-4


def test_powers_of_two_by_their_rules():
    """Largest weights in units of e2m1's 6 = 1.5 * 2^2; the thresholds are 6 (up), 7 (even: what rounds to 8), 4 (ceil)."""
    peaks = torch.tensor([[3.9], [4.0], [4.1], [6.0], [6.1], [6.9], [7.0], [8.0]])
    wanted = {
        "floor": [-1, 0, 0, 0, 0, 0, 0, 1],
        "even": [0, 0, 0, 0, 0, 0, 1, 1],
        "up": [0, 0, 0, 0, 1, 1, 1, 1],
        "ceil": [0, 0, 1, 1, 1, 1, 1, 1],
    }
    for rule, exponents in wanted.items():
        assert (E8M0(rule).store(peaks, 6.0).int() - 127)[:, 0].tolist() == exponents, rule


def test_a_group_without_negative_numbers_has_a_minimum_of_zero():
    for grid in (Offset(16), Offset(16, minimum=FloatScale(signed=True))):
        p = grid.fit(torch.rand(4, 16))
        assert (p["min"] == 0).all() and (grid.decode(grid.encode(torch.zeros(4, 16), p), p) == 0).all()
