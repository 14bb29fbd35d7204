"""Stacks: one artefact that is loaded at any size. The order of its terms is decided when it is made, or measured afterwards.

A stack is a native directory whose configuration says in which order its matrices get one term more; `Native(size)` opens the longest
prefix that fits, which is a model like any other: it loads, and `convert` writes it as a directory of its own.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitwright.allocation.stack import Score, Stack, falls, measured
from bitwright.calibrate.data import Windows
from bitwright.errors import writing
from bitwright.export.base import Opened, open_compressed
from bitwright.export.native import Native, one_size
from bitwright.progress import Progress, silent
from bitwright.report import Row
from bitwright.terms.base import Json, stored_bits

Metas = Mapping[str, Sequence[Mapping[str, Json]]]


def ordered(allocation: Any, rows: Sequence[Row], metas: Metas) -> tuple[str, ...]:
    """The order of a stack by the errors that were measured on the way; () where the recipe makes none."""
    if not isinstance(allocation, Stack):
        return ()
    return tuple(name for name, _ in allocation.order(falls({row.name: row.prefixes for row in rows}), sizes(metas)))


def sizes(metas: Metas) -> dict[str, list[int]]:
    """Bytes of the second, third, ... term of every matrix."""
    return {name: [stored_bits((meta,)) // 8 for meta in found[1:]] for name, found in metas.items()}


def reorder(directory: str | Path, windows: Windows, stack: Stack = Stack(), progress: Progress = silent) -> tuple[str, ...]:
    """Order the terms of a native directory by what they gain in perplexity, as the paper does, and write that into it: one pass over
    the windows per term. Raises BadRequest where there is nothing to order."""
    root = Path(directory)
    if not Native().recognises(root):
        raise one_size(root)
    opened = open_compressed(root)
    terms = {name: len(found) for name, found in opened.model.metas.items()}
    if max(terms.values()) == 1:
        raise one_size(root)
    score, of, done = scorer(root, opened, windows), sum(terms.values()) - len(terms) + max(terms.values()) - 1, itertools.count(1)

    def told(prefix: Mapping[str, int]) -> float:
        loss = score(prefix)
        progress("ordering", next(done), of)
        return loss

    found = tuple(name for name, _ in stack.order(measured(terms, told), sizes(opened.model.metas)))
    config = json.loads((root / "config.json").read_text())
    config["quantization_config"]["stack"] = list(found)
    with writing(root):
        partial = root / "config.partial"
        partial.write_text(json.dumps(config, indent=1))
        partial.replace(root / "config.json")
    return found


def scorer(root: Path, opened: Opened, windows: Windows, batch: int = 8) -> Score:
    """The mean loss per token, in nats, of the model with so many terms of every matrix."""
    from bitwright.loading import assembled

    model = assembled(root, opened)
    held = {name: list(model.get_submodule(name).terms) for name in opened.model.metas}

    @torch.no_grad()
    def score(prefix: Mapping[str, int]) -> float:
        for name, count in prefix.items():
            model.get_submodule(name).terms = nn.ModuleList(held[name][:count])
        total = 0.0
        for rows in windows.ids.split(batch):
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].flatten(0, 1)
            total += float(nn.functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
        return total / windows.ids[:, 1:].numel()

    return score
