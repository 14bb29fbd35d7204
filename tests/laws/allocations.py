"""Allocations: laws of every solver on tables of losses and prices, and what becomes of a budget on a model."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes
from bitwright.allocation.base import Allocation, cheapest, reach, step, total
from bitwright.allocation.dynamic import DynamicProgram
from bitwright.allocation.greedy import Greedy
from bitwright.allocation.integer_program import IntegerProgram
from bitwright.allocation.probes import Anchored, Divergence, Fisher, GramError
from bitwright.allocation.uniform import Uniform
from bitwright.allocation.water_level import WaterLevel
from bitwright.errors import BadRequest
from bitwright.job import Job
from bitwright.layout import Layout
from bitwright.menus import Menu
from bitwright.recipe import Recipe, Rule
from bitwright.terms.base import stored_bits

EXACT = (IntegerProgram(slack=0.0), DynamicProgram())


def tables(units: int, choices: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses that fall and prices that rise along the choices, in units of eight bits; one entry is not possible."""
    g = torch.Generator().manual_seed(seed)
    sizes, scale = torch.randint(1, 9, (units, 1), generator=g), torch.rand(units, 1, generator=g).double() * 4
    price = 8 * sizes * (torch.randint(1, 4, (units, choices), generator=g).cumsum(1))
    loss = 10.0 ** -(torch.rand(units, choices, generator=g).double().cumsum(1) + scale)
    loss[0, 0] = torch.inf
    return loss, price


def budgets(loss: Tensor, price: Tensor, count: int = 7) -> list[int]:
    least, most = reach(loss, price)
    return [least + (most - least) * i // (count - 1) for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_is_kept_and_possible_choices_are_taken(allocation: Allocation, seed: int) -> None:
    loss, price = tables(12, 5, seed)
    for budget in budgets(loss, price):
        try:
            choice = allocation(loss, price, budget)
        except BadRequest:
            assert isinstance(allocation, Uniform)  # the same choice for all may cost more than the cheapest of each
            continue
        assert total(price, choice) <= budget and torch.isfinite(loss.gather(1, choice[:, None])).all()


@pytest.mark.parametrize("solver", [Greedy(), WaterLevel(), *EXACT], ids=lambda s: type(s).__name__)
def test_measuring_is_never_worse_than_the_same_for_all(solver: Allocation) -> None:
    loss, price = tables(12, 5)
    for budget in budgets(loss, price)[1:]:
        try:
            even = Uniform()(loss, price, budget)
        except BadRequest:
            continue
        assert total(loss, solver(loss, price, total(price, even))) <= total(loss, even) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_exact_solvers_find_what_trying_everything_finds(seed: int) -> None:
    loss, price = tables(5, 4, seed)
    every = [torch.tensor(c) for c in product(range(4), repeat=5)]
    for budget in budgets(loss, price):
        least = min(total(loss, c) for c in every if total(price, c) <= budget)
        for solver in EXACT:
            assert total(loss, solver(loss, price, budget)) == pytest.approx(least, rel=1e-9), type(solver).__name__


@pytest.mark.parametrize("solver", [Greedy(), WaterLevel()], ids=lambda s: type(s).__name__)
def test_relaxations_are_near_the_optimum_where_units_are_many(solver: Allocation) -> None:
    loss, price = tables(200, 6)
    for budget in budgets(loss, price)[1:-1]:
        assert total(loss, solver(loss, price, budget)) <= 1.02 * total(loss, IntegerProgram()(loss, price, budget))


def test_a_thinned_dynamic_program_keeps_the_budget_and_comes_near() -> None:
    loss, price = tables(60, 6)
    for budget in budgets(loss, price)[1:]:
        choice = DynamicProgram(states=300)(loss, price, budget)
        assert total(price, choice) <= budget
        assert total(loss, choice) <= 1.1 * total(loss, IntegerProgram()(loss, price, budget))


def test_equal_losses_per_bit_make_the_water_level_flat() -> None:
    """Units that differ only by a factor in loss end within one step of the same marginal loss."""
    bits = torch.arange(1, 9)
    scale = 4.0 ** torch.tensor([0.0, 1, 2, 3])
    loss, price = scale[:, None].double() * 4.0**-bits, (1000 * bits).expand(4, -1).clone()
    choice = WaterLevel()(loss, price, 1000 * 18)
    assert choice.tolist() == [2, 3, 4, 5]  # one bit more for every factor of four


def test_uniform_buys_the_most_that_fits() -> None:
    price = 10 * torch.tensor([[2, 3, 5, 8, 19]] * 3)
    even = torch.zeros(3, 5).double()
    assert Uniform()(even, price, 8 * 30).tolist() == [3, 3, 3]
    assert Uniform()(even, price, 8 * 30 - 1).tolist() == [2, 2, 2]
    with pytest.raises(BadRequest, match="raise it"):
        Uniform()(even, price, 10)
    with pytest.raises(BadRequest, match="common"):
        Uniform()(torch.tensor([[0, torch.inf], [torch.inf, 0]]).double(), price[:2, :2], 1000)


# --- a model -------------------------------------------------------------------------------------------------------------------


class Losses:
    """Candidates whose losses are known."""

    size = (2, 3)

    def __init__(self) -> None:
        self.measured: list[dict[int, int]] = []

    def possible(self, unit: int, choice: int) -> bool:
        return (unit, choice) != (1, 0)

    def errors(self, unit: int, choice: int) -> list[Tensor]:
        return [torch.tensor([1.0, 2.0]) * 0.1**choice] * (unit + 1)

    def gradients(self, unit: int) -> list[Tensor]:
        return [torch.tensor([2.0, 4.0])] * (unit + 1)

    def divergence(self, chosen: Any) -> float:
        self.measured.append(dict(chosen))
        return 7.0


def test_probes_are_what_they_say() -> None:
    found = Losses()
    gram, fisher = GramError()(found), Fisher()(found)
    assert gram[1].tolist() == pytest.approx([torch.inf, 0.6, 0.06]) and fisher[0].tolist() == pytest.approx([5, 0.5, 0.05])
    assert not found.measured
    assert Divergence()(found)[0].tolist() == [7, 7, 7] and len(found.measured) == 5
    anchored = Anchored(1.0)(found)
    assert anchored[0, 0] == 7 and anchored[0, 1] == pytest.approx(0.7) and anchored[1, 1] == 7


def menu(model: Path, recipe: Recipe) -> Menu:
    job = Job.of(model, recipe, None)
    return Menu.of(job.source, recipe, job.plan.wiring, job.form, False)


def asked(budget: float, **parts: Any) -> Recipe:
    return replace(recipes.gptq(group=16), **{"budget": budget, "allocation": IntegerProgram(), **parts})


def test_what_is_written_is_what_was_planned_and_fused_matrices_are_alike(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    """Twenty budgets from one scoring; the solver may give up any loss to spend all."""
    model = tiny_llama(num_hidden_layers=2)
    found, all_of_it = menu(model, asked(3.0)), IntegerProgram(slack=10.0)
    least, most = (x / found.weights for x in reach(found.prices_only, found.price))
    for i in range(20):
        budget = least + (most - least) * (i + 0.5) / 20
        _, report = bitwright.compress(
            model, asked(budget, allocation=all_of_it), tokens(), out=tmp_path / str(i), stats=tmp_path / "stats"
        )
        bits = {row.name: row.bits for row in report.rows}
        told = report.asked["allocation"]
        assert sum(bits.values()) == sum(unit["bits"][unit["choice"]] for unit in told["units"])
        assert 0 <= int(budget * found.weights) - sum(bits.values()) < step(found.prices_only, found.price)
        for unit in found.units:
            kinds = {str(bitwright.index.to_dict(grid)) for grid in grids(report, unit)}
            assert len(kinds) == 1, unit


def grids(report: Any, unit: tuple[str, ...]) -> list[Any]:
    recipe = Recipe.from_dict(report.asked["recipe"])
    return [recipe.of(name).grid for name in unit]


def test_a_second_budget_measures_nothing(tiny_llama: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stats = tiny_llama(num_hidden_layers=1), tmp_path / "stats"
    first, _ = bitwright.compress(model, asked(3.0), tokens(), out=tmp_path / "a", stats=stats)
    for part in ("bitwright.allotting.collect", "bitwright.allotting.gradients", "bitwright.matrix.compress_matrix"):
        monkeypatch.setattr(part, lambda *args, **kwargs: pytest.fail("measured again"))
    bitwright.compress(model, asked(4.0), tokens(), out=tmp_path / "b", stats=stats)
    again, _ = bitwright.compress(model, asked(3.0), tokens(), out=tmp_path / "c", stats=stats)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


def test_a_budget_out_of_reach_names_the_range(tiny_llama: Callable[..., Path]) -> None:
    model = tiny_llama(num_hidden_layers=1)
    for budget in (0.5, 12.0):
        with pytest.raises(BadRequest, match=r"reaches from \d\.\d+ to \d+\.\d+ bits"):
            Job.of(model, asked(budget), None)
    with pytest.raises(BadRequest, match="what is kept as it is takes"):
        Job.of(model, recipes.rtn(group=16), None).plan.within(10)


def test_a_rule_for_a_part_of_what_is_loaded_as_one_is_refused(tiny_llama: Callable[..., Path]) -> None:
    pinned = Rule("re:.*q_proj", grid=recipes.rtn(8).grid)
    with pytest.raises(BadRequest, match="loaded as one"):
        Job.of(tiny_llama(), asked(3.0, rules=(pinned,)), None)
    whole = Rule("re:.*[qkv]_proj", grid=recipes.rtn(8).grid)
    plan = Job.of(tiny_llama(), asked(5.0, rules=(whole,)), None).plan
    assert all(p.recipe.grid.levels == 256 for n, p in plan.sites.items() if n.endswith(("q_proj", "k_proj", "v_proj")))
    assert sum(p.bits for p in plan.sites.values()) <= 5.0 * sum(p.shape[0] * p.shape[1] for p in plan.sites.values())


def test_a_menu_of_the_users_own_mixes_grids_layouts_and_floats(tiny_llama: Any, tokens: Any, tmp_path: Path) -> None:
    own = (
        Rule("re:.*", grid=recipes.rtn(2).grid, layout=Layout(1, 32)),
        Rule("re:.*", grid=recipes.rtn(4).grid, layout=Layout(1, 8)),
        Rule("re:.*o_proj", ignore=True),
    )
    model = tiny_llama(num_hidden_layers=1)
    found = menu(model, asked(3.0, menu=own))
    most = reach(found.prices_only, found.price)[1] / found.weights
    small, report = bitwright.compress(model, asked(most, menu=own), tokens(), out=tmp_path / "m")
    assert "model.layers.0.self_attn.o_proj" not in {row.name for row in report.rows}  # the only way to spend so much
    assert sum(stored_bits(m.decoded()) for m in small.modules() if hasattr(m, "decoded")) == sum(row.bits for row in report.rows)
    with pytest.raises(BadRequest, match="No choice of the menu is possible"):
        Job.of(tiny_llama(), asked(3.0, menu=own[2:]), None)
    assert cheapest(torch.zeros(1, 2).double(), torch.tensor([[5, 4]])).tolist() == [1]
