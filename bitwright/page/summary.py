"""What the rows of a report add up to: by the role of a matrix, by block, by kind over depth."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

from bitwright.page import words
from bitwright.report import Report, Row

ROLES = {
    "attn": "attention matrices",
    "attention": "attention matrices",
    "mlp": "MLP matrices",
    "experts": "MLP matrices",
}


@dataclass(frozen=True)
class Sum:
    """Several matrices as one. `error` and `nearest` are means over the matrices, each a share of its own energy."""

    name: str
    rows: tuple[Row, ...]

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def bits(self) -> int:
        return sum(row.bits for row in self.rows)

    @property
    def bpw(self) -> float:
        return self.bits / self.weights

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def error(self) -> float:
        return sum(row.error for row in self.rows) / len(self.rows)

    @property
    def nearest(self) -> float:
        return sum(row.nearest for row in self.rows) / len(self.rows)

    @property
    def terms(self) -> str:
        """What the matrices are stored as, in words."""
        kinds = dict.fromkeys(kind for row in self.rows for kind in row.terms)
        return ", ".join(words.TERMS.get(kind, kind) for kind in kinds)


def by(name: Iterable[tuple[str, Row]]) -> tuple[Sum, ...]:
    """Rows gathered under their names, in the order the names come first."""
    found: dict[str, list[Row]] = {}
    for key, row in name:
        found.setdefault(key, []).append(row)
    return tuple(Sum(key, tuple(rows)) for key, rows in found.items())


def roles(report: Report) -> tuple[Sum, ...]:
    return by((role(row), row) for row in report.rows)


def role(row: Row) -> str:
    if row.block is None:
        return "embedding and head"
    return next((name for part, name in ROLES.items() if part in row.name), "other matrices")


def blocks(report: Report) -> tuple[Sum, ...]:
    """The blocks in the order of the model; matrices outside of them are left out."""
    inside = sorted((row for row in report.rows if row.block is not None), key=lambda row: row.block or 0)
    return by((str(row.block), row) for row in inside)


def kinds(report: Report) -> dict[str, tuple[Sum, ...]]:
    """For every kind of matrix (the last part of its name) its blocks, in order."""
    inside = [row for row in report.rows if row.block is not None]
    return {s.name: by((str(row.block), row) for row in s.rows) for s in by((kind_of(row), row) for row in inside)}


def points(sums: Iterable[Sum], what: str) -> list[tuple[float, float]]:
    """(block, value) of an attribute, to be drawn."""
    return [(float(s.name), float(getattr(s, what))) for s in sums]


def kind_of(row: Row) -> str:
    return row.name.rsplit(".", 1)[-1]


def ratios(rows: Iterable[Row]) -> list[float]:
    """Error as a multiple of what nearest rounding on the same grid makes, where both are positive numbers."""
    fair = [row for row in rows if isfinite(row.error + row.nearest) and min(row.error, row.nearest) > 0]
    return [row.error / row.nearest for row in fair]


def typical(found: list[float]) -> float | None:
    """Geometric mean: the middle of ratios."""
    return math.exp(sum(map(math.log, found)) / len(found)) if found else None


def ends(scores: Iterable[Mapping[str, words.Json] | None]) -> list[words.Number | None]:
    """Every value and end of an interval: what an axis has to hold."""
    return [score.get(part) for score in scores if score for part in ("value", "low", "high")]


def doubts(scores: Mapping[str, words.Json]) -> list[str]:
    """What a careful reader would object to in these scores."""
    found = []
    distance, ratio, tasks = scores["divergence"], scores["perplexity"]["ratio"], scores["tasks"]
    if distance and distance["broken"]:
        found.append(f"{distance['broken']:,} tokens gave numbers that are not finite: the model is broken on them.")
    if distance and scores["floor"] is None:
        found.append("The noise floor was not measured, so a small difference cannot be told from none.")
    if ratio and ratio["high"] is not None and ratio["high"] < 0:
        found.append("Perplexity is better than the original's: a reason to check the data for leaks, not a success.")
    if scores["data"]["windows"] < 8:
        found.append(f"Only {scores['data']['windows']} windows were measured: the intervals are rough.")
    for task in tasks:
        chance, flips = 1 / task["options"], task["flips"]
        best = max(task["accuracy"], flips["accuracy_base"]) if flips else task["accuracy"]
        if best < chance + 2 * math.sqrt(chance * (1 - chance) / task["n"]):
            guess = f"no better than guessing ({words.percent(chance)})"
            found.append(f'Task "{task["name"]}": {guess}, so its accuracy says little; its flips do.')
    return found


def remarks(report: Report) -> list[str]:
    """Fallbacks and notes; what is said of several matrices is said once, with their number and the first of them."""
    found: dict[str, list[str]] = {}
    for row in report.rows:
        for note in row.notes:
            found.setdefault(note, []).append(row.name)
    said = [f"{n[0]}: {note}" if len(n) == 1 else f"{len(n):,} matrices, {n[0]} first: {note}" for note, n in found.items()]
    return said + list(report.notes)
