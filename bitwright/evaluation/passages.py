"""The places where two models differ most, as text a person can read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.calibrate.data import Windows
from bitwright.evaluation.divergence import Tokens

BEFORE, AFTER = 40, 20


@dataclass(frozen=True)
class Mark:
    """A token of a passage where the models' first choices differ; probabilities are of the true token."""

    at: int
    base: str
    other: str
    p_base: float
    p_other: float


@dataclass(frozen=True)
class Passage:
    """About 60 tokens around the largest KL of a window. `kl[i]` belongs to `tokens[i]`, 0 for a window's first."""

    row: int
    domain: str
    title: str
    window_kl: float
    peak: int
    tokens: tuple[str, ...]
    kl: tuple[float, ...]
    marks: tuple[Mark, ...]


def passages(tokens: Tokens, windows: Windows, tokenizer: Any, most: int = 5) -> tuple[Passage, ...]:
    """The windows of largest mean KL, at most one from each document. Without a tokenizer, ids stand for strings."""
    mean = np.nan_to_num(tokens.kl.mean(1), nan=np.inf)
    rows: list[int] = []
    for row in np.argsort(-mean, kind="stable"):
        if len(rows) < most and windows.titles[row] not in {windows.titles[i] for i in rows}:
            rows.append(int(row))
    return tuple(_passage(tokens, windows, tokenizer, row) for row in rows)


def _passage(tokens: Tokens, windows: Windows, tokenizer: Any, row: int) -> Passage:
    def text(token: int) -> str:
        return f"#{token}" if tokenizer is None else tokenizer.decode([token])

    kl = np.concatenate([[0.0], tokens.kl[row]])
    peak = int(np.nanargmax(kl))
    start, stop = max(0, peak - BEFORE), min(len(kl), peak + AFTER)
    marks = []
    for at in range(max(start, 1), stop):
        b, q = int(tokens.top_base[row, at - 1]), int(tokens.top_other[row, at - 1])
        if b != q:
            p_b, p_q = np.exp(-tokens.nll_base[row, at - 1]), np.exp(-tokens.nll_other[row, at - 1])
            marks.append(Mark(at - start, text(b), text(q), float(p_b), float(p_q)))
    return Passage(
        row=row,
        domain=windows.domains[int(windows.domain[row])],
        title=windows.titles[row],
        window_kl=float(tokens.kl[row].mean()),
        peak=peak - start,
        tokens=tuple(text(int(token)) for token in windows.ids[row, start:stop]),
        kl=tuple(float(value) for value in kl[start:stop]),
        marks=tuple(marks),
    )
