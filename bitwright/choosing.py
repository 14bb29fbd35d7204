"""The recipe that the options of a command describe."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitwright import index, recipes
from bitwright.allocation.integer_program import IntegerProgram
from bitwright.errors import BadRequest
from bitwright.grids.uneven import Uneven
from bitwright.recipe import Recipe, Rule


def choose(
    model: str,
    recipe: str,
    bits: int | None,
    group: int | None,
    options: list[str],
    ignore: list[str],
    head: bool,
    budget: float | None,
) -> Any:
    """The recipe that the options describe. Raises BadRequest where it does not know one of them."""
    rules = tuple(Rule(name, ignore=True) for name in ignore)
    if recipe.endswith((".toml", ".json")):
        if bits is not None or group is not None or options:
            raise BadRequest("A recipe file says its own bits and groups; leave out --bits, --group and --set, or edit the file.")
        if not Path(recipe).is_file():
            raise BadRequest(f"There is no recipe file {recipe}; `bitwright list recipes` shows the built-in ones.")
        found = Recipe.read(recipe)
    else:
        make = recipes.get(recipe)
        known = inspect.signature(make).parameters
        wanted: dict[str, Any] = {k: v for k, v in (("bits", bits), ("group", group)) if v is not None}
        for pair in options:
            name, _, text = pair.partition("=")
            wanted[name] = {"true": True, "false": False}.get(text.lower(), number(text))
        if "blocks" in known and "blocks" not in wanted:  # a mixture depends on the depth of the model
            from bitwright.checkpoint import open_checkpoint

            wanted["blocks"] = open_checkpoint(model).config.num_hidden_layers
        for name in wanted:
            if name not in known:
                raise BadRequest(f"The recipe {recipe!r} has no option {name!r}; it has {', '.join(known)}.")
        found = make(**{k: None if k == "group" and v == 0 else v for k, v in wanted.items()})
    return replace(found, rules=rules + found.rules, head=head or found.head, budget=budget or found.budget)


def rivals(
    model: str, names: str, bits: str | None, budgets: str | None, allocation: str | None, group: int | None
) -> dict[str, Recipe]:
    """The recipes that a comparison makes, by the name of their directory: each at every width, then under every budget."""
    if allocation and not budgets:
        raise BadRequest("There is nothing to spend; give --budgets as well.")
    widths, spent = [int(b) for b in listed("bits", bits or ("" if budgets else "2,3,4"))], listed("budgets", budgets or "")
    chosen = {}
    for name in filter(None, names.split(",")):  # a preset has a width and a group of its own
        free = "bits" in inspect.signature(recipes.get(name)).parameters
        for width in widths if free else [None]:
            label, size = (f"{name}-{width}", group) if free else (name, None)
            chosen[label] = choose(model, name, width, size, [], [], False, None)
        for budget in spent if free else []:
            found = choose(model, name, None, group, [], [], False, budget)
            chosen[f"{name}-budget-{budget:g}"] = spending(found, allocation, None, None)
    return chosen


def listed(option: str, text: str) -> list[float]:
    """Positive numbers between commas. Raises BadRequest where one is none."""
    found = [number(part) for part in text.split(",") if part]
    for value in found:
        if isinstance(value, str) or not 0 < value < 99 or (option == "bits" and value != int(value)):
            raise BadRequest(
                f"{value!r} is none of the {option} that can be asked for; give numbers between commas, such as 2,3,4."
            )
    return [float(value) for value in found]


def number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def spending(recipe: Recipe, allocation: str | None, menu: str | None, kl: float | None) -> Recipe:
    """How the recipe spends its budget: by what each choice loses where it has data and something to choose, else by prices."""
    chosen = [recipes.get(name)() for name in menu.split(",")] if menu else []
    parts = ("grid", "layout", "rounding", "corrections")
    own = tuple(Rule("re:.*", **{part: getattr(found, part) for part in parts}) for found in chosen) or recipe.menu
    if kl is not None and recipe.budget is not None:
        raise BadRequest("A bound on the KL takes the place of a size or a budget; give one of them.")
    if recipe.budget is None and kl is None:
        if allocation or menu:
            raise BadRequest("There is nothing to spend; give --budget, --size or --kl as well.")
        return recipe
    how = index.resolve("allocation", allocation)() if allocation else recipe.allocation
    if how is None and (kl is not None or own or ("gram" in recipe.needs and not isinstance(recipe.grid, Uneven))):
        how = IntegerProgram()
    return replace(recipe, allocation=how, menu=own, bound=kl)
