"""Numbers and recipes in words, the same in the terminal table and on the page. Everything here is plain ASCII.

A number that could not be measured is None (the JSON of the scores has null for it) and reads "n/a"; three significant
digits unless a share is so close to 1 that they would round it away.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

Json = Any
Number = int | float  # a JSON number that happens to be whole is an int

VERDICTS = {  # verdict level -> the rest of "MODEL is N times smaller, ..."
    "indistinguishable": "and no difference could be measured",
    "tiny": "with a tiny change in behaviour",
    "small": "with a small change in behaviour",
    "visible": "with a visible change in behaviour",
    "damaged": "but its behaviour is damaged",
}
INPUTS = {
    "as compressed so far": "every block saw its inputs as the blocks before it, already compressed, produce them",
    "float (statistics store)": "statistics of the uncompressed model, from a store: no block saw the errors before it",
    "none": "none: the recipe works without data",
}
KINDS = {
    "q_proj": "queries",
    "k_proj": "keys",
    "v_proj": "values",
    "o_proj": "attention output",
    "gate_proj": "MLP gate",
    "up_proj": "MLP up",
    "down_proj": "MLP down",
}
TERMS = {
    "coded": "codes and scales",
    "rows": "codes and scales of sorted rows",
    "low_rank": "low-rank term",
    "sparse": "single weights",
    "sign_lowrank": "signs and magnitudes",
    "widely_linear": "codes of complex numbers",
}
PARTS = {
    "greedy": "always the step that saves most per bit",
    "water-level": "one price of a bit for the whole model",
    "integer-program": "the exact optimum over all choices",
    "dynamic-program": "the least loss for every spending",
    "absmax": "the range of a group reaches its largest weight",
    "mse": "the range of a group is the one of least rounding error",
    "imatrix": "the range of a group is the one of least error, weighted by the data",
    "nearest": "nearest rounding",
    "gptq": "GPTQ",
    "quantease": "QuantEase sweeps",
    "quantease-outlier": "QuantEase with outliers",
    "lorc": "a low-rank term for the error (LoRC)",
    "outliers": "outliers stored apart",
}


def number(value: Number | None, digits: int = 3) -> str:
    """`digits` significant ones, thousands separated; below 1e-4 with an exponent."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if power < -4:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def percent(share: Number | None, digits: int = 3) -> str:
    """A share as per cent; near 1 with as many decimals as its distance to 1 needs."""
    if share is not None and 0.99 < share < 1:
        return f"{100 * share:.{1 - math.floor(math.log10(100 * (1 - share)))}f} %"
    return "n/a" if number(share) == "n/a" else f"{number(100 * float(share or 0), digits)} %"


def signed(value: Number | None, write: Callable[[Number | None], str] = number) -> str:
    return ("+" if value is not None and value > 0 else "") + write(value)


def interval(score: Mapping[str, Json], write: Callable[[Number | None], str] = number) -> str:
    """Low to high, or that there is none."""
    if score["low"] is None or score["high"] is None:
        return "no interval"
    return f"{write(score['low'])} to {write(score['high'])}"


def size(count: Number) -> str:
    """Bytes with a decimal unit, 1 MB = 1,000,000 bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} TB"


def duration(seconds: Number) -> str:
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def probability(p: Number | None) -> str:
    return "< 0.0001" if p is not None and p < 1e-4 else number(p, 2)


def change(log_ratio: Number | None) -> Number | None:
    """exp(r) - 1: what a log ratio of perplexities means as a share."""
    return None if log_ratio is None else math.expm1(min(log_ratio, 700.0))


def grid(part: Mapping[str, Json]) -> str:
    kind = part.get("use")
    if kind == "integer":
        levels = part["levels"]
        where = "around zero" if part.get("symmetric") else "with a zero point for each group"
        return f"{levels} evenly spaced levels ({math.log2(levels):.3g} bits per code) {where}"
    if kind == "table":
        return f"the points of the {part['table']} table"
    if kind == "trit-planes":
        return f"a sum of {part['planes']} scaled planes of -1, 0 and 1"
    if kind in ("codebook", "additive"):
        book = f"{part['levels'] if kind == 'codebook' else part['words']} learned vectors of {part['width']} weights"
        return f"one of {book}" if kind == "codebook" else f"a sum of {part['books']}, each one of {book}"
    return plain(part)


def layout(part: Mapping[str, Json]) -> str:
    rows, cols = part.get("rows"), part.get("cols")
    if rows == 1:
        return f"{cols} neighbouring weights of a row share a scale" if cols else "every row has a scale of its own"
    if rows is None:
        return "one scale for the whole matrix" if cols is None else f"{cols} columns share a scale"
    return f"blocks of {rows} x {cols or 'all'} weights share a scale"


def plain(part: Json) -> str:
    """Any part of a recipe: its name, or its steps; else as it is written in a recipe file."""
    if not isinstance(part, Mapping):
        return ", ".join(map(plain, part)) if isinstance(part, list | tuple) else str(part)
    if part.get("use") == "chain":
        return ", then ".join(plain(step) for step in part["steps"])
    rest = {k: v for k, v in part.items() if k != "use" and not isinstance(v, Mapping | list | tuple) and v is not None}
    name = str(part.get("use", ""))
    fields = ", ".join(f"{k} {v}" for k, v in rest.items())
    return PARTS.get(name) or (f"{name} ({fields})" if fields else name)


def recipe(asked: Mapping[str, Json]) -> Mapping[str, Json]:
    """The parts of the recipe that the report holds: all of them where `asked["recipe"]` is the recipe itself."""
    found = asked["recipe"]
    if isinstance(found, Mapping):
        return found
    return {"name": found} | {k: v for k, v in asked.items() if k not in ("model", "recipe", "calibration", "inputs")}


def title(asked: Mapping[str, Json]) -> str:
    """A recipe's name with what tells its rows apart in a comparison: its budget, or the levels or bits of its grid."""
    parts, spent = recipe(asked), asked.get("allocation") or {}
    grid_part = parts.get("grid") or {}
    if budget := spent.get("budget"):
        return f"{parts['name']}, {number(budget)} bits"
    size = grid_part.get("levels") or (f"{number(bits)} bits" if (bits := grid_part.get("bits")) else None)
    return f"{parts['name']}, {size}" if size else str(parts["name"])


def exact(asked: Mapping[str, Json]) -> str:
    """The recipe as JSON, without the parts that are not there."""
    return json.dumps({k: v for k, v in recipe(asked).items() if v not in (None, [], ())}, indent=1)


def described(asked: Mapping[str, Json]) -> list[tuple[str, str]]:
    """(what, in words) for every part of the recipe that says something."""
    parts, found = recipe(asked), []
    if grid_part := parts.get("grid"):
        found.append(("values", grid(grid_part)))
        if fit := grid_part.get("by"):
            found.append(("range", plain(fit)))
    if parts.get("layout"):
        found.append(("groups", layout(parts["layout"])))
    for key in ("rounding", "corrections", "transforms", "activations", "allocation"):
        if parts.get(key):
            found.append((key, plain(parts[key])))
    if parts.get("budget"):
        found.append(("budget", f"{number(parts['budget'])} stored bits per weight of the compressed matrices"))
    if told := asked.get("allocation"):
        goal = f"KL under {number(told['bound'])} nats" if told.get("bound") else f"{number(told['budget'])} bits per weight"
        found.append(("allocation", f"{plain(told['allocation'])}: {goal} over {len(told['units'])} units"))
    if parts.get("rules"):
        found.append(("exceptions", f"{len(parts['rules'])} rules by name, see the exact recipe"))
    return found
