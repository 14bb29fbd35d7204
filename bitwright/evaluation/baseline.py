"""Baseline: one pass of the uncompressed model, kept for every compressed model that is measured against it.

The noise floor goes with it: the same model in batches of one, and with its body in bf16 (in fp32 if it is in bf16
already), both on the first eight windows and through the same head. No compressed model can be told from the baseline
by a smaller distance than that. Cost: one pass, two passes over eight windows, and a second copy of the model for the
time of the bf16 run.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from bitwright.calibrate.data import Windows
from bitwright.calibrate.data import windows as draw
from bitwright.errors import BadRequest
from bitwright.evaluation.divergence import divergence
from bitwright.evaluation.evaluation import Floor, Run
from bitwright.evaluation.hidden import Hidden, head_of, hidden_states
from bitwright.evaluation.tasks import Answers, Items, answer, copy_items, text_items
from bitwright.progress import Progress, silent

FLOOR_WINDOWS = 8
SAMPLES, LENGTH = 64, 512  # of the default windows


@dataclass(frozen=True)
class Questions:
    """Task items over the evaluation windows and over windows of their own."""

    text: tuple[Items, ...]
    copy: Items
    copy_ids: Int[Tensor, "rows length"]

    @classmethod
    def of(cls, windows: Windows, tokenizer: Any) -> "Questions":
        ids, items = copy_items(windows)
        return cls(text_items(windows, tokenizer) if tokenizer is not None else (), items, ids)


@dataclass(frozen=True)
class Reading:
    """States and answers of one model on the windows and questions."""

    hidden: Hidden
    head: nn.Module
    answers: tuple[tuple[Items, Answers], ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        windows: Windows,
        questions: Questions,
        batch: int,
        path: str | Path | None = None,
        progress: Progress = silent,
    ) -> "Reading":
        head = head_of(model)
        hidden = hidden_states(model, windows.ids, batch, path, progress)
        own = hidden_states(model, questions.copy_ids, batch)
        answers = [(items, answer(hidden, head, items)) for items in questions.text]
        return cls(hidden, head, (*answers, (questions.copy, answer(own, head, questions.copy))))


@dataclass(frozen=True)
class Baseline:
    """What a comparison needs of the uncompressed model: nothing of it is referred to, so it may change afterwards."""

    windows: Windows
    tokenizer: Any
    questions: Questions
    reading: Reading
    floor: Floor | None
    batch: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        windows: Windows | None = None,
        tokenizer: Any = None,
        *,
        batch: int = 8,
        noise_floor: bool = True,
        path: str | Path | None = None,
        progress: Progress = silent,
    ) -> "Baseline":
        """Run the baseline once.

        Args:
            windows: evaluation windows; by default 64 of 512 tokens of the standard library's evaluation half.
            tokenizer: for the default windows, word and bracket tasks and readable passages; without it those are left
                out and passages show ids.
            path: file for the states when they are too large for memory.

        Raises:
            BadRequest: neither windows nor tokenizer; see also `hidden_states`.
        """
        windows = chosen(model, windows, tokenizer)
        questions = Questions.of(windows, tokenizer)
        reading = Reading.of(model, windows, questions, batch, path, progress)
        reading = Reading(reading.hidden, copy.deepcopy(reading.head), reading.answers)
        floor = _floor(model, windows, questions, reading, batch) if noise_floor else None
        return cls(windows, tokenizer, questions, reading, floor, batch)


def chosen(model: nn.Module, windows: Windows | None, tokenizer: Any) -> Windows:
    """The given windows, or the default ones in the model's length."""
    if windows is not None:
        return windows
    if tokenizer is None:
        raise BadRequest("evaluation needs text: give windows, or the model's tokenizer for the default text")
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None) or LENGTH
    return draw(tokenizer, samples=SAMPLES, length=min(LENGTH, most), split="evaluation")


def _floor(model: nn.Module, windows: Windows, questions: Questions, reading: Reading, batch: int) -> Floor:
    rows = min(FLOOR_WINDOWS, len(windows.ids))
    ids, first = windows.ids[:rows], reading.hidden.take(rows)
    other = torch.float32 if reading.hidden.dtype == torch.bfloat16 else torch.bfloat16
    single = 1 if batch > 1 else 2
    cast = copy.deepcopy(model).to(other)
    again = {f"batches of {single}": hidden_states(model, ids, single), str(other)[6:]: hidden_states(cast, ids, batch)}
    runs = []

    def right(hidden: Hidden) -> np.ndarray:
        kept = [items.take(rows) for items in questions.text]
        picked = [answer(hidden, reading.head, items).scores.argmax(1) == items.answer for items in kept]
        return np.concatenate([*picked, np.zeros(0, bool)])

    before = right(first)
    for name, hidden in again.items():
        seen = Hidden(hidden.states, first.dtype)  # the baseline's own head, in its own type
        tokens = divergence(first, reading.head, seen, reading.head, ids)
        flips = float((right(seen) != before).mean()) if len(before) else None
        runs.append(Run(name, rows, float(tokens.kl.mean()), float(tokens.same_top.mean()), flips))
    return Floor(max(run.kl for run in runs), tuple(runs))
