"""Recipe: a method as one frozen value. `compress` does what the recipe says, and the recipe is saved beside the weights."""

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitwright import index
from bitwright.activations.base import Activation
from bitwright.allocation.base import Allocation
from bitwright.corrections.base import Correction
from bitwright.corrections.finish import Finish
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.rounding.base import JointRounding, Rounding, alone, joints
from bitwright.rounding.nearest import Nearest


@dataclass(frozen=True)
class Rule:
    """Exceptions by name. `match`: a module's name, or `re:` and a regular expression that its whole name must match.

    `ignore` leaves the weight as it is; otherwise the parts that are given replace the recipe's. The first match counts.
    """

    match: str
    ignore: bool = False
    grid: Grid | None = None
    layout: Layout | None = None
    rounding: Rounding | None = None
    corrections: tuple[Correction, ...] | None = None
    activations: Activation | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.match.removeprefix("re:") if self.match.startswith("re:") else "")
        except re.error as error:
            raise BadRequest(f"The rule {self.match!r} is no regular expression ({error}); mend it, or name the layer.") from None

    def matches(self, name: str) -> bool:
        if self.match.startswith("re:"):
            return re.fullmatch(self.match[3:], name) is not None
        return name == self.match or name.endswith(f".{self.match}")


@dataclass(frozen=True)
class Recipe:
    """Grid x layout x rounding x corrections, with an optional budget and rules by name.

    `budget`: stored bits per weight of the compressed matrices, which `allocation` then spends on choices of `menu`: rules, of
    which every matrix takes one that matches it (none: numbers of levels on the recipe's own grid). `bound`: instead of a budget,
    the largest KL per token on held-out text, under which the smallest model is sought. `head`: also compress the embedding and
    the output head (rounded to nearest: an embedding's rows meet no data but their own). `activations` quantizes the inputs of
    the compressed matrices while the model runs; not those of the head. `after`: steps over the compressed model, in this order.
    """

    grid: Grid = Integer()
    layout: Layout = Layout(1, 128)
    rounding: Rounding | JointRounding = Nearest()
    transforms: tuple[Any, ...] = ()
    corrections: tuple[Correction, ...] = ()
    allocation: Allocation | None = None
    budget: float | None = None
    bound: float | None = None
    menu: tuple[Rule, ...] = ()
    activations: Activation | None = None
    rules: tuple[Rule, ...] = ()
    head: bool = False
    after: tuple[Finish, ...] = ()
    name: str = "custom"

    def of(self, module: str) -> "Recipe | None":
        """The recipe for one module by the first rule that matches; None where it is ignored."""
        return next((self.under(rule) for rule in self.rules if rule.matches(module)), self)

    def under(self, rule: Rule) -> "Recipe | None":
        """The recipe with a rule's parts in place of its own; None where the rule ignores."""
        parts = {f: getattr(rule, f) for f in ("grid", "layout", "rounding", "corrections", "activations")}
        return None if rule.ignore else replace(self, **{k: v for k, v in parts.items() if v is not None})

    @property
    def alone(self) -> Rounding:
        """The rounding of single matrices: all of it, or what joint ones begin with."""
        return alone(self.rounding)

    @property
    def joint(self) -> tuple[JointRounding, ...]:
        """Roundings of several matrices, in the order in which they are solved."""
        return joints(self.rounding)

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics that any part of it reads; empty: it works without data."""
        recipes = [self, *(r for rule in (*self.rules, *self.menu) if (r := self.under(rule)))]
        parts: list[Any] = [part for r in recipes for part in (r.alone, r.grid, *r.corrections, r.activations) if part is not None]
        # what is trained needs data in any case; second moments let the report say what single matrices lose
        walked = {"gram"} if self.joint or self.after else set()
        return tuple(sorted({need for part in parts for need in part.needs} | walked))

    def with_levels(self, levels: int) -> "Recipe":
        """The same recipe on a grid of another size. Raises BadRequest where the grid's size is fixed."""
        if not any(f.name == "levels" for f in dataclasses.fields(self.grid)):  # type: ignore[arg-type]
            name = index.name_of(type(self.grid))
            raise BadRequest(f"The grid {name!r} has a fixed number of levels; choose a recipe on the integer grid.")
        return replace(self, grid=replace(self.grid, levels=levels))  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = index.to_dict(self)
        return found

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Recipe":
        made = index.from_dict({"use": "recipe", **value})
        return cls(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """From a .toml or .json file. Raises BadRequest naming the line or the part that is wrong."""
        try:
            text = Path(path).read_text()
            value = tomllib.loads(text) if Path(path).suffix == ".toml" else json.loads(text)
        except (ValueError, OSError) as error:
            raise BadRequest(f"{path} cannot be read as a recipe: {error}.") from None
        if not isinstance(value, dict):
            raise BadRequest(f"{path} is not a recipe: it must be a table of parts such as grid and rounding.")
        return cls.from_dict(value)

    def to_toml(self) -> str:
        """The recipe as a file that `read` takes."""
        return "".join(f"{k} = {toml(v)}\n" for k, v in self.to_dict().items() if v is not None and k != "use")


def toml(value: Any) -> str:
    """Plain values as TOML; nested tables inline, absent values left out."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items() if v is not None) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return json.dumps(value)
