"""Stacks: one artefact that is loaded at any size. The order of its terms is decided when it is made, or measured afterwards.

A stack is a native directory whose configuration says in which order its matrices get one term more; `Native(size)` opens the longest
prefix that fits, which is a model like any other: it loads, and `convert` writes it as a directory of its own.
"""

import json
from collections.abc import Mapping, Sequence
from math import exp, prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitwright.allocation.stack import Stack, falls, measured
from bitwright.calibrate.data import Windows
from bitwright.checkpoint import skeleton
from bitwright.errors import BadRequest, writing
from bitwright.export.base import Opened, open_compressed
from bitwright.export.native import Native, fields
from bitwright.progress import Progress, silent
from bitwright.report import Row
from bitwright.terms.base import Json, decode, stored_bits

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
    """Order a native directory of sums by perplexity, as the paper does, and write the order into it: a pass over the windows for every
    term. Raises BadRequest where there is nothing to order."""
    root = Path(directory)
    opened = open_compressed(root)
    terms = {name: len(found) for name, found in opened.model.metas.items()}
    if not isinstance(open_form := Native(), Native) or max(terms.values()) < 2 or not open_form.recognises(root):
        raise BadRequest(f"{root} has no matrix of several terms; compress with --recipe bitstack.")
    steps = sum(terms.values()) - len(terms) + max(terms.values()) - 1
    scored = Scored(opened, windows)

    def score(prefix: Mapping[str, int]) -> float:
        progress("ordering", min(scored.done + 1, steps), steps)
        return scored(prefix)

    found = tuple(name for name, _ in stack.order(measured(terms, score), sizes(opened.model.metas)))
    config = json.loads((root / "config.json").read_text())
    config["quantization_config"] |= {"stack": list(found)}
    with writing(root):
        partial = root / "config.partial"
        partial.write_text(json.dumps(config, indent=1))
        partial.replace(root / "config.json")
    return found
