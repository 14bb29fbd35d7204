"""Files of JSON: one value, or one per line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8


def value(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def signed(bits: UInt8[np.ndarray, "n bytes"]) -> list[list[int]]:
    """Bytes as whole numbers from -128 to 127."""
    return bits.view(np.int8).tolist()


def shortest(x: Float32[np.ndarray, "n dims"]) -> list[list[float]]:
    """The fewest digits that are read back as the same fp32."""
    return [[float(text) for text in row] for row in x.astype("U")]
