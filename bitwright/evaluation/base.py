"""Score: a number with its error bar; the block bootstrap that makes the bar; JSON for dataclasses that hold scores.

Tokens of one window are correlated, windows are not: windows are the blocks (card: evaluation, section 4). For a mean
per token r = sum_w D_w / sum_w n_w over W windows

    sd(r) = sqrt( W/(W-1) * sum_w (D_w - n_w r)^2 ) / N,      N = sum_w n_w,

and the 95 % interval holds the middle of 10 000 resamples of the windows. A resample is a row of counts, so all of them
are one matrix product with the sums per window. Percentiles need the tokens themselves: 1 000 resamples, each a
weighted pass over the tokens sorted once (smallest value whose weight reaches the rank, without interpolation).
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

Json = Any  # None, bool, int, float, str, list, dict
RESAMPLES = 10_000
QUANTILE_RESAMPLES = 1_000
MIDDLE = (0.025, 0.975)


@dataclass(frozen=True)
class Score:
    """A value, its 95 % interval, its standard deviation, and the number of things it is made of.

    `low`, `high` and `sd` are nan where one window gives no spread.
    """

    value: float
    low: float
    high: float
    sd: float
    n: int
    unit: str

    def map(self, f: Callable[[float], float], slope: float, unit: str) -> "Score":
        """The score of an increasing function of the value; `slope` is its derivative there."""
        return Score(f(self.value), f(self.low), f(self.high), self.sd * slope, self.n, unit)


def resamples(windows: int, times: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "times windows"]:
    """How often each window occurs in each bootstrap sample of as many windows."""
    return np.random.default_rng(seed).multinomial(windows, np.full(windows, 1 / windows), size=times).astype(float)


def block_mean(
    sums: Float[np.ndarray, "windows"],
    counts: Float[np.ndarray, "windows"],
    draws: Float[np.ndarray, "times windows"],
    unit: str,
) -> Score:
    """Mean per token from the sum and the number of tokens of every window; windows without tokens are left out."""
    used = counts > 0
    total, blocks = counts.sum(), int(used.sum())
    if blocks == 0:
        return Score(math.nan, math.nan, math.nan, math.nan, 0, unit)
    value = float(sums[used].sum() / total)
    if blocks == 1 or not math.isfinite(value):
        return Score(value, math.nan, math.nan, math.nan, int(total), unit)
    sd = math.sqrt(blocks / (blocks - 1) * np.square(sums[used] - counts[used] * value).sum()) / float(total)
    weights = draws[:, used] @ counts[used]
    hit = weights > 0  # a rare stratum may be missing from a resample
    low, high = np.quantile((draws[:, used] @ sums[used])[hit] / weights[hit], MIDDLE)
    return Score(value, float(low), float(high), sd, int(total), unit)


def block_quantiles(
    values: Float[np.ndarray, "windows tokens"],
    levels: list[float],
    draws: Float[np.ndarray, "times windows"],
    unit: str,
) -> list[Score]:
    """Percentiles over all tokens (linear interpolation; level 1 is the maximum) with block-bootstrap intervals."""
    points = np.quantile(values, levels)
    if len(values) == 1 or not np.isfinite(points).all():
        return [Score(float(point), math.nan, math.nan, math.nan, values.size, unit) for point in points]
    order = np.argsort(values, axis=None)
    rising, window = values.ravel()[order], order // values.shape[1]
    found = np.empty((min(len(draws), QUANTILE_RESAMPLES), len(levels)))
    for i in range(len(found)):
        weight = np.cumsum(draws[i][window])
        found[i] = rising[np.searchsorted(weight, np.array(levels) * weight[-1])]
    low, high = np.quantile(found, MIDDLE, axis=0)
    sd = found.std(axis=0, ddof=1)
    return [Score(float(p), float(l), float(h), float(s), values.size, unit) for p, l, h, s in zip(points, low, high, sd)]


def to_json(value: Any) -> Json:
    """Plain dicts, lists, numbers and strings; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def from_json(kind: Any, data: Json) -> Any:
    """The inverse of `to_json` for the annotated types of a dataclass; null in place of a number becomes nan."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if data is None else from_json(args[0], data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: from_json(hints[f.name], data[f.name]) for f in dataclasses.fields(kind)})
    if origin is tuple:
        return tuple(from_json(args[0], item) for item in data)
    if origin is dict:
        return {key: from_json(args[1], item) for key, item in data.items()}
    if kind is float:
        return math.nan if data is None else float(data)
    return data
