"""Stacks: one artefact that is loaded at any size. The order of its terms is decided when it is made, or measured afterwards.

A stack is a native directory whose configuration says in which order its matrices get one term more; `Native(size)` opens the
longest prefix that fits, which is a model like any other: it loads, and `convert` writes it as a directory of its own.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer as Ints
from torch import Tensor, nn

from bitwright.allocation.stack import Gains, Score, Stack, falls, measured, weighed
from bitwright.calibrate.base import Data
from bitwright.calibrate.data import Windows
from bitwright.coded import CodedLinear
from bitwright.errors import BadRequest, writing
from bitwright.export.base import Opened, open_compressed
from bitwright.export.native import Native, one_size
from bitwright.progress import Progress, silent
from bitwright.report import Row
from bitwright.terms.base import Json, decode, stored_bits

ORDERING = 8  # calibration windows on which a new stack is ordered
Metas = Mapping[str, Sequence[Mapping[str, Json]]]


def ordered(allocation: Any, rows: Sequence[Row], metas: Metas) -> tuple[str, ...]:
    """The order of a stack by the errors that were measured on the way; () where the recipe makes none."""
    if not isinstance(allocation, Stack):
        return ()
    return tuple(name for name, _ in allocation.order(falls({row.name: row.prefixes for row in rows}), sizes(metas)))


def unmeasured(allocation: Any, data: Data | None) -> tuple[str, ...]:
    """What the report says where a stack keeps the order of its errors, as there is no text to run the model on."""
    if not isinstance(allocation, Stack) or allocation.by == "errors" or isinstance(data, Windows):
        return ()
    return ("the stack is ordered by the errors of its matrices, as no text was given; with text its small sizes are better",)


def finish(directory: Path, allocation: Any, data: Data | None, progress: Progress) -> None:
    """The last step of making a stack: its order is measured, where its recipe asks for that and there is data."""
    if not isinstance(allocation, Stack) or allocation.by == "errors" or not isinstance(data, Windows):
        return
    if open_compressed(directory).model.stack:  # empty where no matrix has a second term
        reorder(directory, data.ids[:ORDERING], allocation, progress)


def sizes(metas: Metas) -> dict[str, list[int]]:
    """Bytes of the second, third, ... term of every matrix."""
    return {name: [stored_bits((meta,)) // 8 for meta in found[1:]] for name, found in metas.items()}


def reorder(directory: str | Path, ids: Ints[Tensor, "rows length"], stack: Stack = Stack(), progress: Progress = silent) -> None:
    """Order the terms of a native directory by what they are worth to the model on these tokens, and write that into it. Raises
    BadRequest where there is nothing to order."""
    root = Path(directory)
    opened = open_compressed(root)
    terms = {name: len(found) for name, found in opened.model.metas.items()}
    if not Native().recognises(root) or max(terms.values()) == 1:
        raise one_size(root)
    rows = opened.document.get("report", {}).get("rows", [])
    errors = {row["name"]: row.get("prefixes", ()) for row in rows}
    if stack.by != "perplexity" and {name: len(path) for name, path in errors.items()} != terms:
        raise BadRequest(f"{root} does not say what errors its terms leave; order it by perplexity.")
    several = sum(count > 1 for count in terms.values())
    passes = 1 + several if stack.by == "sensitivity" else sum(terms.values()) - len(terms) + max(terms.values()) - 1
    score, done = scorer(root, opened, ids), itertools.count(1)

    def told(prefix: Mapping[str, int]) -> float:
        loss = score(prefix)
        progress("ordering the stack", next(done), passes)
        return loss

    how: dict[str, Callable[[], Gains]] = {
        "errors": lambda: falls(errors),
        "sensitivity": lambda: weighed(errors, told),
        "perplexity": lambda: measured(terms, told),
    }
    order = stack.order(how[stack.by](), sizes(opened.model.metas))
    config = json.loads((root / "config.json").read_text())
    config["quantization_config"]["stack"] = [name for name, _ in order]
    with writing(root):
        partial = root / "config.partial"
        partial.write_text(json.dumps(config, indent=1))
        partial.replace(root / "config.json")


def scorer(root: Path, opened: Opened, ids: Ints[Tensor, "rows length"], batch: int = 8) -> Score:
    """The mean loss per token, in nats, of the model with so many terms of every matrix."""
    from bitwright.loading import assembled

    model = assembled(root, opened)
    held = {name: m.decoded() for name, m in model.named_modules() if isinstance(m, CodedLinear) and len(m.terms) > 1}
    dense = {name: plain(model.get_submodule(name)) for name in held}
    for name, module in dense.items():
        model.set_submodule(name, module)
    now: dict[str, int] = {}

    @torch.no_grad()
    def score(prefix: Mapping[str, int]) -> float:
        for name, module in dense.items():
            if now.get(name) != prefix[name]:  # one term more or less changes one matrix
                module.weight.copy_(decode(held[name][: prefix[name]]))
                now[name] = prefix[name]
        total = 0.0
        for rows in ids.split(batch):
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].flatten(0, 1)
            total += float(nn.functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
        return total / ids[:, 1:].numel()

    return score


def plain(module: CodedLinear) -> nn.Linear:
    made = nn.Linear(module.in_features, module.out_features, bias=False)
    made.bias = module._parameters["bias"]  # type: ignore[assignment]
    return made
