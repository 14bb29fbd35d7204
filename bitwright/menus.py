"""Menus: what every unit of a model may choose from, and what it costs, before a weight is read.

A unit is what an engine loads as one (q, k and v; gate and up; the experts of a block), by the model's wiring. A choice is a rule
of the recipe's `menu`, put over the recipe that applies to the site; without a menu, a ladder of levels on the recipe's own grid.
What a user's rule says of a site's grid or layout stays: such sites are paid for and have no choice.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import cheapest, reach, topped_up
from bitwright.allocation.stack import Stack
from bitwright.allocation.uniform import Uniform
from bitwright.checkpoint import Checkpoint, skeleton
from bitwright.errors import BadRequest
from bitwright.export.base import Format
from bitwright.grids.uneven import Uneven
from bitwright.plan import Planned, heads, inside, plan_site
from bitwright.recipe import Recipe, Rule
from bitwright.wiring import Wiring

STEPS = 64  # parts of a bit in which the rate of an uneven grid is found
LADDER = (2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 64, 128, 256)  # about a third of a bit apart where it matters


@dataclass(frozen=True, eq=False)
class Menu:
    """`planned[site][c]`: the site under choice c, None where it is left as it is; `price` in stored bits, 0 where not possible."""

    units: tuple[tuple[str, ...], ...]
    choices: tuple[Rule, ...]
    planned: Mapping[str, tuple[Planned | None, ...]]
    possible: Bool[Tensor, "u c"]
    price: Ints[Tensor, "u c"]
    fixed: Mapping[str, Planned]  # sites that have no choice
    weights: int  # of all sites that the budget pays for

    @classmethod
    def of(cls, source: Checkpoint, recipe: Recipe, wiring: Wiring, form: Format, strict: bool) -> "Menu":
        """Raises BadRequest where a unit has no choice, or a rule pins a part of one."""
        model = skeleton(source.config)
        named = {n: (site, recipe.of(n)) for n, site in inside(model, wiring).items()}
        outer = heads(model, wiring, recipe, source.config.tie_word_embeddings) if recipe.head else {}
        if not measured(recipe):
            named |= outer
        own = {n: (site, r) for n, (site, r) in {**named, **outer}.items() if r is not None}
        free = [n for n in named if n in own and not pins(recipe, n)]
        fixed = {n: p for n, (s, r) in own.items() if n not in free and (p := plan_site(n, s, r, strict, form))}
        choices = recipe.menu or ladder(recipe)
        kept = {n: 8 * form.kept_bytes(n, (source.shapes[f"{n}.weight"], source.dtypes[f"{n}.weight"])) for n in free}
        known: dict[Any, Planned | BadRequest] = {}

        def under(name: str, choice: Rule) -> Planned | BadRequest | None:
            (site, mine), matches = own[name], choice.matches(name)
            if not matches or choice.ignore:
                return None if matches else BadRequest(f"the choice {choice.match!r} is not for {name}.")
            at = site.shape, mine, choice
            if at not in known:
                try:
                    known[at] = plan_site(name, site, mine.under(choice), strict, form)  # type: ignore[assignment]
                except BadRequest as why:
                    known[at] = why
            return known[at]

        units, rows = gathered(free, wiring), {name: [under(name, choice) for choice in choices] for name in free}
        for unit in units:
            if apart := [n for n in fixed if partners(n, unit[0], wiring)]:
                raise BadRequest(f"{apart[0]} has a rule of its own but is loaded as one with {unit[0]}; give the rule to both.")
        possible = torch.tensor(
            [[not any(isinstance(rows[n][c], BadRequest) for n in u) for c in range(len(choices))] for u in units]
        )
        for unit in (u for u, some in zip(units, possible.any(1).tolist()) if not some):
            why = next(x for n in unit for x in rows[n] if isinstance(x, BadRequest))
            raise BadRequest(f"No choice of the menu is possible for {unit[0]}: {str(why).rstrip('.')}; choose another menu.")
        planned = {n: tuple(None if isinstance(x, BadRequest) else x for x in row) for n, row in rows.items()}
        price = torch.tensor(
            [[sum(p.bits if (p := planned[n][c]) else kept[n] for n in u) for c in range(len(choices))] for u in units]
        )
        weights = sum(prod(site.shape) for site, _ in own.values())
        return cls(units, choices, planned, possible, torch.where(possible, price, 0), fixed, weights)

    @property
    def pinned(self) -> int:
        return sum(p.bits for p in self.fixed.values())

    @property
    def prices_only(self) -> Float[Tensor, "u c"]:
        """A table of losses that says no more than what is possible."""
        return torch.where(self.possible, 0.0, torch.inf).double()

    def budget(self, recipe: Recipe) -> int:
        """Bits for the units under the recipe's budget, or for the dearest choices. Raises BadRequest with the range in reach."""
        if recipe.budget is None:
            return reach(self.prices_only, self.price)[1]
        least, most = (end + self.pinned for end in reach(self.prices_only, self.price))
        asked = int(recipe.budget * self.weights)
        if not least <= asked < most + min(self.weights, most // 8):  # a little above the dearest is the dearest
            low, high = (f"{8 * -(-end // 8) / 8 / self.weights:.3f}" for end in (least, most))
            raise BadRequest(
                f"A budget of {recipe.budget:.3f} bits per weight cannot be met: the menu reaches from {low} to {high} bits "
                f"({least // 8:,} to {most // 8:,} bytes of matrices); choose one in between, another group or another menu."
            )
        return asked - self.pinned

    def spent(self, recipe: Recipe, choice: Ints[Tensor, "u"]) -> Recipe:
        """The recipe in which every unit has its choice: the commonest is the recipe's own, the others are rules by name."""
        common = int(choice.mode().values)
        made = recipe.under(replace(self.choices[common], match="")) or recipe
        rules = [Rule(n, grid=p.recipe.grid, layout=p.recipe.layout) for n, p in self.fixed.items() if not pins(recipe, n)]
        for unit, c in zip(self.units, choice.tolist()):
            for name in unit:
                wanted = self.planned[name][c]
                if wanted is None:
                    rules.append(Rule(name, ignore=True))
                elif made.of(name) != replace(made, **parts(wanted.recipe)):
                    rules.append(Rule(name, **{part: v for part, v in parts(wanted.recipe).items() if v != getattr(made, part)}))
        return replace(made, rules=(*rules, *recipe.rules), menu=(), allocation=None, budget=None, bound=None)


def parts(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("grid", "layout", "rounding", "corrections", "activations")}


def ladder(recipe: Recipe) -> tuple[Rule, ...]:
    """Numbers of levels on the recipe's own grid; all of them where only prices count."""
    if isinstance(recipe.grid, Uneven):
        return tuple(Rule("re:.*", grid=replace(recipe.grid, bits=n / 4)) for n in range(4, 29))  # type: ignore[type-var,call-arg]
    recipe.with_levels(2)  # a grid of fixed size is refused in its own words
    return tuple(Rule("re:.*", grid=recipe.with_levels(n).grid) for n in (LADDER if measured(recipe) else range(2, 257)))


def pins(recipe: Recipe, name: str) -> bool:
    """Whether a user's rule gives a site a grid or a layout."""
    rule = next((rule for rule in recipe.rules if rule.matches(name)), None)
    return rule is not None and not rule.ignore and (rule.grid is not None or rule.layout is not None)


def measured(recipe: Recipe) -> bool:
    """Whether losses decide, not prices alone. Without a budget every unit takes what loses least of the menu."""
    by_loss = recipe.allocation is not None and recipe.allocation.probe is not None
    if recipe.bound is not None and (recipe.budget is not None or not by_loss):
        raise BadRequest("A bound on the KL takes the place of a budget, and an allocation that measures losses; mend the recipe.")
    return by_loss and (recipe.budget is not None or recipe.bound is not None or bool(recipe.menu))


def by_price(source: Checkpoint, recipe: Recipe, wiring: Wiring, form: Format, strict: bool) -> Recipe:
    """The budget spent by prices alone. Where the allocation measures losses this only foretells what a run will write."""
    if isinstance(recipe.allocation, Stack):
        raise BadRequest(
            "A stack is stored whole and cut when it is loaded; leave out the budget, and give `load` or `evaluate` a --size."
        )
    if isinstance(recipe.grid, Uneven) and not recipe.menu and not measured(recipe):
        return at_rate(source, recipe, wiring, form, strict)
    menu = Menu.of(source, recipe, wiring, form, strict)
    even = menu.prices_only
    budget = reach(even, menu.price)[1] if recipe.budget is None else menu.budget(recipe)
    if not measured(recipe):
        return menu.spent(recipe, (recipe.allocation or Uniform())(even, menu.price, budget))
    return menu.spent(recipe, topped_up(even - menu.price, menu.price, budget, cheapest(even, menu.price)))


def at_rate(source: Checkpoint, recipe: Recipe, wiring: Wiring, form: Format, strict: bool) -> Recipe:
    """A grid that takes any rate, at the highest that the budget pays for everywhere."""

    def trial(rate: int) -> Menu:
        rule = Rule("re:.*", grid=replace(recipe.grid, bits=rate / STEPS))  # type: ignore[type-var,call-arg]
        return Menu.of(source, replace(recipe, menu=(rule,)), wiring, form, strict)

    def cost(rate: int) -> int:
        menu = trial(rate)
        return reach(menu.prices_only, menu.price)[0] + menu.pinned

    rates = range(STEPS // 4, STEPS * (recipe.grid.levels.bit_length() - 1) + 1)
    asked = int((recipe.budget or 0.0) * trial(rates[0]).weights)
    found = trial(rates[max(0, bisect_right(rates, asked, key=cost) - 1)])
    found.budget(recipe)
    return found.spent(recipe, torch.zeros(len(found.units), dtype=torch.long))


def gathered(names: Sequence[str], wiring: Wiring) -> tuple[tuple[str, ...], ...]:
    """Sites that engines load as one, together; others alone; in the order of the walk."""
    found: dict[object, list[str]] = {}
    for name in names:
        found.setdefault(kin(name, wiring) or name, []).append(name)
    return tuple(map(tuple, found.values()))


def kin(name: str, wiring: Wiring) -> tuple[str, tuple[str, ...]] | None:
    """What the sites that are loaded as one with a site have in common; None where it is loaded alone."""
    for part in wiring.fused:
        for end in part:
            if name.endswith(f".{end}"):
                return name.removesuffix(end), part
    return None


def partners(a: str, b: str, wiring: Wiring) -> bool:
    return kin(a, wiring) is not None and kin(a, wiring) == kin(b, wiring)
