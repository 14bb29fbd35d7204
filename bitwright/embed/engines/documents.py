"""Files of JSON: one value, or one per line; and numbers printed many at a time.

A decimal of up to 6 digits comes back from the fp32 number that is nearest to it, and 9 digits bring every number back. So of the
roundings to 9, 8, 7 and 6 digits the last that is read back as the same number is the shortest, for all numbers of a block at once.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

TENS = np.array([float(10**k) for k in range(23)])  # all that a double holds exactly

compact = json.JSONEncoder(separators=(",", ":")).encode


def value(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def lines(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(row + "\n" for row in rows)


def signed(bits: UInt8[np.ndarray, "n bytes"]) -> list[list[int]]:
    """Bytes as whole numbers from -128 to 127."""
    return bits.view(np.int8).tolist()


def printed(x: Float32[np.ndarray, "n dims"]) -> list[str]:
    """Rows as compact JSON, in the fewest digits that are read back as the same fp32."""
    values, plain = shortest(x)
    return [pattern(easy.tobytes()) % tuple(numbers) for numbers, easy in zip(values.tolist(), plain)]


@lru_cache(1 << 10)
def pattern(plain: bytes) -> str:
    """How numbers are printed; %g takes half the time."""
    return "[" + ",".join("%.9g" if easy else "%r" for easy in plain) + "]"


def shortest(x: Float32[np.ndarray, "n dims"]) -> tuple[Float64[np.ndarray, "n dims"], Bool[np.ndarray, "n dims"]]:
    """Doubles of the fewest digits, and which of them are plain: from 10^-14 to 10^6 and not whole, so that the powers of ten are
    exact and %g prints as JSON does."""
    size = np.abs(x)
    a, found = size.astype(float), np.full(x.shape, np.nan)
    with np.errstate(divide="ignore"):
        place = np.floor(np.log10(a))
    plain = (place >= -14) & (place < 6) & (a != np.rint(a))
    place = np.where(plain, place, 0).astype(int)
    for digits in (9, 8, 7, 6):
        ten = TENS[digits - 1 - place]
        near = np.rint(a * ten) / ten
        found = np.where(near.astype(np.float32) == size, near, found)
    found = np.copysign(found, x)
    found[~plain] = x[~plain].astype("U").astype(float)
    return found, plain
