"""The states that enter a language model's head: what a baseline pass keeps.

Logits are `vocabulary` numbers per token, the states before the head only `width`: 4096 against 256 in a small model,
128k against 4k in a large one. Kept once, they give back every logit by one matrix product, so KL, tasks and a second
compressed model cost no second pass of the baseline.

A hook on the head takes the states and hands the head a single position, so no logits are formed on the way.
Cost: rows * length * width * 4 bytes, in memory or in one safetensors file.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitwright.errors import BadRequest
from bitwright.progress import Progress, silent


@dataclass(frozen=True)
class Hidden:
    """States [rows, length, width] in fp32 and the type the head takes them in."""

    states: Float[Tensor, "rows length width"]
    dtype: torch.dtype

    def take(self, rows: int) -> "Hidden":
        return Hidden(self.states[:rows], self.dtype)


def head_of(model: nn.Module) -> nn.Module:
    """The module that turns states into logits.

    Raises:
        BadRequest: the model has none.
    """
    of: Any = getattr(model, "get_output_embeddings", None)
    head = of() if of else None
    if head is None:
        raise BadRequest(f"{type(model).__name__} has no output head: evaluation needs a causal language model")
    return head


def logits(head: nn.Module, states: Float[Tensor, "tokens width"], dtype: torch.dtype) -> Float[Tensor, "tokens vocab"]:
    """fp32 logits, formed in the model's own type and on the head's device."""
    weight = next(iter([*head.parameters(), *head.buffers()]), states)
    return head(states.to(weight.device, dtype)).float()


def hidden_states(
    model: nn.Module,
    ids: Int[Tensor, "rows length"],
    batch: int = 8,
    path: str | Path | None = None,
    progress: Progress = silent,
    what: str = "states",
) -> Hidden:
    """Run the body once over all windows.

    Args:
        path: keep the states in this safetensors file (mapped into memory) instead of in memory.
        progress: called with (what, windows done, windows in all).

    Raises:
        BadRequest: windows longer than the model's positions; no head; or logits that are not the head of the states.
    """
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None) or ids.shape[1]
    if ids.shape[1] > most:
        raise BadRequest(f"windows of {ids.shape[1]} tokens exceed the model's {most} positions: use shorter windows")
    head, taken, states = head_of(model), [], None
    device = next(model.parameters()).device

    def take(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        taken.append(args[0])
        return (args[0][:, :1], *args[1:])

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _check_head(model, head, ids[:1, : min(16, ids.shape[1])].to(device))
            hook = head.register_forward_pre_hook(take)
            try:
                for start in range(0, len(ids), batch):
                    model(input_ids=ids[start : start + batch].to(device), use_cache=False)
                    seen = taken.pop()
                    if states is None:
                        states = _room((*ids.shape, seen.shape[-1]), path)
                    states[start : start + batch] = seen.float().cpu()
                    progress(what, min(start + batch, len(ids)), len(ids))
            finally:
                hook.remove()
    finally:
        model.train(training)
    assert states is not None
    return Hidden(states, seen.dtype)


def _check_head(model: nn.Module, head: nn.Module, ids: Tensor) -> None:
    """One short window with all its logits: they must be the head of the states, nothing scaled or capped after it."""
    taken: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    try:
        whole = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    if not taken:
        raise BadRequest(f"{type(model).__name__} does not call its output head: evaluation needs its states")
    again = head(taken[0]).float()
    near = 1e-3 * float(whole.nan_to_num(0, 0, 0).abs().max())
    if again.shape != whole.shape or not torch.allclose(again, whole, rtol=1e-3, atol=near, equal_nan=True):
        raise BadRequest(
            f"the logits of {type(model).__name__} are not its output head alone (a soft cap or a scale follows): "
            "only `perplexity.measure` can score it"
        )


def _room(shape: tuple[int, ...], path: str | Path | None) -> Tensor:
    """An fp32 tensor in memory, or the only tensor of a new safetensors file, mapped."""
    if path is None:
        return torch.empty(shape)
    size = 4 * int(np.prod(shape))
    header = json.dumps({"states": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return torch.from_numpy(np.memmap(path, "<f4", "r+", offset=8 + len(header), shape=shape))
