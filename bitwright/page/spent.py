"""Where a budget went: the units that engines load as one, what each was given and what that bought. From the report's own JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from bitwright.page import words
from bitwright.page.charts import pc, picture, tag
from bitwright.page.words import Number

SHADES, ROW = 5, 26


@dataclass(frozen=True)
class Unit:
    """`loss`: what its choice is foretold to lose; `saved`: how much less that is than under its cheapest choice."""

    kind: str
    block: int
    weights: int
    bits: int
    choice: str
    loss: float
    saved: float

    @property
    def bpw(self) -> float:
        return self.bits / self.weights


@dataclass(frozen=True)
class Kind:
    """All units of one kind."""

    name: str
    units: tuple[Unit, ...]

    @property
    def weights(self) -> int:
        return sum(u.weights for u in self.units)

    @property
    def bpw(self) -> float:
        return sum(u.bits for u in self.units) / self.weights

    @property
    def loss(self) -> float:
        return sum(u.loss for u in self.units)

    @property
    def saved(self) -> float:
        return sum(u.saved for u in self.units)


def units(told: Mapping[str, Any]) -> tuple[Unit, ...]:
    """Of the `allocation` of a report."""
    found = []
    for i, unit in enumerate(told["units"]):
        c, first = unit["choice"], unit["sites"][0]
        known = [(bits, loss) for bits, loss in zip(unit["bits"], unit["loss"]) if loss is not None]
        block = next((int(part) for part in first.split(".") if part.isdigit()), i)
        kind, rule = " + ".join(name.rsplit(".", 1)[-1] for name in unit["sites"]), told["choices"][c]
        loss = unit["loss"][c] or 0.0
        found.append(Unit(kind, block, unit["weights"], unit["bits"][c], choice(rule), loss, min(known)[1] - loss))
    return tuple(found)


def choice(rule: Mapping[str, Any]) -> str:
    """A choice of the menu in words."""
    if rule.get("ignore"):
        return "left as it is"
    grid, layout = rule.get("grid"), rule.get("layout")
    said = [words.grid(grid)] if grid else []
    said += [words.layout(layout)] if layout else []
    return ", ".join(said) or "the recipe's own"


def kinds(found: Sequence[Unit]) -> tuple[Kind, ...]:
    return tuple(Kind(name, tuple(u for u in found if u.kind == name)) for name in dict.fromkeys(u.kind for u in found))


def shade(value: Number, low: Number, high: Number) -> int:
    """1 (few bits) to 5 (many)."""
    return 1 + min(int(SHADES * (value - low) / (high - low)), SHADES - 1) if high > low else 3


def board(found: Sequence[Unit]) -> Markup:
    """Blocks from left to right, kinds of units from top to bottom; the darker the more bits, with numbers where there is room."""
    rows, blocks = kinds(found), max(u.block for u in found) + 1
    low, high = min(u.bpw for u in found), max(u.bpw for u in found)
    wide, cells = 100 / blocks, []
    for y, kind in enumerate(rows):
        for u in kind.units:
            says = tag("title", f"block {u.block}, {u.kind}: {words.number(u.bpw)} bits per weight, {u.choice}")
            place = {"x": pc(u.block * wide), "y": y * ROW, "width": pc(wide), "height": ROW}
            cells.append(tag("rect", says, **place, class_=f"part c{shade(u.bpw, low, high)}"))
            if blocks <= 16:
                at = {"x": pc((u.block + 0.5) * wide), "y": y * ROW + 17}
                cells.append(tag("text", f"{u.bpw:.2f}", **at, class_="tick middle dark"))
    ticks = [
        tag("text", b, x=pc((b + 0.5) * wide), y=len(rows) * ROW + 16, class_="tick middle")
        for b in range(0, blocks, max(1, -(-blocks // 12)))
    ]
    return picture("Bits per weight of every unit over depth", len(rows) * ROW + 20, *cells, *ticks)
