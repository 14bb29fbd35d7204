"""The linears of one block of large models, and rounding problems of their shapes. Only torch, so that peers can import it."""

from collections.abc import Callable
from typing import Any

import torch

LLAMA3_8B = {"q": (4096, 4096), "k, v": (2048, 4096), "o": (4096, 4096), "gate, up": (28672, 4096), "down": (4096, 14336)}
FALCON_180B = {"qkv": (15872, 14848), "o": (14848, 14848), "up": (59392, 14848), "down": (14848, 59392)}
SHAPES = {"llama": LLAMA3_8B, "falcon": FALCON_180B}


def weights(out: int, inp: int) -> torch.Tensor:
    return torch.randn(out, inp, device="cuda", generator=torch.Generator("cuda").manual_seed(out))


def moments(inp: int, tokens: int = 16384) -> torch.Tensor:
    """Of tokens whose independent sources fall off as 1 / i, each mixed into the features of its 64th of the layer."""
    random = torch.Generator("cuda").manual_seed(inp)
    part = inp // 64
    mix = torch.randn(64, part, part, device="cuda", generator=random) / part**0.5
    size = torch.arange(1, inp + 1, device="cuda").float().reciprocal()[torch.randperm(inp, device="cuda", generator=random)]
    H = torch.zeros(inp, inp, device="cuda")
    for _ in range(0, tokens, 4096):
        source = torch.randn(4096, inp, device="cuda", generator=random) * size
        x = torch.einsum("tpi,pij->tpj", source.view(4096, 64, part), mix).reshape(4096, inp)
        H.addmm_(x.T, x, alpha=1 / tokens)
    return H


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    found = call()
    end.record()
    torch.cuda.synchronize()
    return found, begin.elapsed_time(end) / 1e3
