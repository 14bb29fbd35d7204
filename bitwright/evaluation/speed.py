"""Speed of a model as it runs: tokens per second while it reads and while it writes, and the bytes it reads for every token.

Writing is one token at a time with a cache, which is what a chat feels like. Two models take turns, step by step, so that a
machine that is busy for a while is busy for both; the figures are medians.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bitwright.coded import CodedModule
from bitwright.kernels.devices import finish
from bitwright.progress import Progress, silent


@dataclass(frozen=True)
class Speed:
    """`reading`, `writing`: tokens per second. `bytes_per_token`: weights that one token's forward pass reads, as they lie in
    memory: packed codes where a kernel takes them, decoded numbers where none does."""

    reading: float
    writing: float
    bytes_per_token: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def speeds(
    models: Sequence[nn.Module], prompt: Int[Tensor, "rows length"], tokens: int = 32, progress: Progress = silent
) -> list[Speed]:
    """Of several models on one prompt, `tokens` tokens written after it, greedily. Models are measured where they are."""
    states = [read(model, prompt) for model in models]  # warm: kernels compile, packed forms are made
    for state in states:
        step(state)
    readings: list[list[float]] = [[] for _ in models]
    for i in range(3):
        for model, seconds in zip(models, readings):
            seconds.append(timed(lambda model=model: read(model, prompt)))
        progress("reading", i + 1, 3)
    writings: list[list[float]] = [[] for _ in models]
    for i in range(tokens):
        for state, seconds in zip(states, writings):
            seconds.append(timed(lambda state=state: step(state)))
        progress("writing", i + 1, tokens)
    return [
        Speed(prompt.numel() / median(r), len(prompt) / median(w), weight_bytes(model), str(prompt.device), torch.get_num_threads())
        for model, r, w in zip(models, readings, writings)
    ]


@dataclass
class State:
    model: Any
    cache: Any
    last: Tensor


def read(model: Any, prompt: Int[Tensor, "rows length"]) -> State:
    out = model(prompt, use_cache=True)
    return State(model, out.past_key_values, out.logits[:, -1:].argmax(-1))


def step(state: State) -> None:
    out = state.model(state.last, past_key_values=state.cache, use_cache=True)
    state.cache, state.last = out.past_key_values, out.logits[:, -1:].argmax(-1)


def timed(call: Any) -> float:
    begun = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - begun


def weight_bytes(model: nn.Module) -> int:
    """Of every matrix and vector that a token meets; of an embedding that is not also the head, one row."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    seen: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, CodedModule):
            seen[id(module)] = module.packed().resident
            continue
        for parameter in module.parameters(recurse=False):
            size = parameter.numel() * parameter.element_size()
            alone = isinstance(module, nn.Embedding) and getattr(head, "weight", None) is not parameter
            seen[id(parameter)] = size // len(parameter) if alone else size
    return sum(seen.values())
