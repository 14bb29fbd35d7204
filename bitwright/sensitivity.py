"""Sensitivity: what quantizing the weights, the inputs of the matrices, or both does to perplexity (ZeroQuant-V2, arXiv 2303.08302;
card: zeroquant-v2). Nothing is calibrated or written: weights go to nearest on ranges of their largest, every token of the
inputs has a range of its own, both without a remedy.

    class 1: perplexity rises by at most 0.1      class 2: by at most 0.5      class 3: by more

The study's classes, made for models whose perplexity lies between 5 and 30: on others read the rise itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bitwright import recipes
from bitwright.activations.dynamic import Dynamic
from bitwright.calibrate.text import text_windows
from bitwright.checkpoint import locate
from bitwright.errors import BadRequest
from bitwright.evaluation import perplexity
from bitwright.grids.integer import Integer
from bitwright.job import Job, compress
from bitwright.loading import load
from bitwright.progress import Progress, silent

CLASSES = ((1, 0.1), (2, 0.5))


@dataclass(frozen=True)
class Setting:
    """Bits of weights and inputs (16: as they are), the perplexity under them, its rise over the original, the class."""

    weights: int
    inputs: int
    perplexity: float
    rise: float
    quality: int


def quality(rise: float) -> int:
    return next((name for name, most in CLASSES if rise <= most), 3)


def sensitivity(
    model: str,
    weights: Sequence[int] = (8, 4, 3),
    inputs: Sequence[int] = (8,),
    group: int | None = 64,
    data: str = "stdlib",
    samples: int = 32,
    length: int = 512,
    progress: Progress = silent,
) -> list[Setting]:
    """The original, every width of weights alone, every width of inputs alone, every pair. Raises BadRequest where a width makes
    no sense."""
    if wrong := [b for b in (*weights, *inputs) if not 2 <= b <= 8]:
        raise BadRequest(f"Weights and inputs are quantized to 2 to 8 bits here, not {wrong[0]}; choose a number in between.")
    ids = text_windows(model, data, samples, length, "evaluation").ids
    names = list(Job.of(model, recipes.rtn(group=group), None).plan.sites)
    found: list[Setting] = []
    for i, bits in enumerate((16, *weights)):
        progress("measuring", i, 1 + len(weights))
        here = load(locate(model)) if bits == 16 else compress(model, recipes.rtn(bits=bits, group=group, mse=False))[0]
        for wide in (16, *inputs):
            with quantized(here, names, wide):
                found.append(setting(bits, wide, float(perplexity.nll(here, ids).mean().exp()), found))
    progress("measuring", 1 + len(weights), 1 + len(weights))
    return found


def setting(weights: int, inputs: int, measured: float, before: Sequence[Setting]) -> Setting:
    rise = measured - before[0].perplexity if before else 0.0
    return Setting(weights, inputs, measured, rise, quality(rise))


@contextmanager
def quantized(model: nn.Module, names: Sequence[str], bits: int) -> Iterator[None]:
    """The model with the inputs of the named modules at so many bits, one range per token; 16: as it is."""
    part = Dynamic(Integer(2**bits)) if bits < 16 else None

    def rounded(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: torch.Tensor = args[0]
        return (x if part is None else part(x.reshape(-1, x.shape[-1]), {}).view(x.shape), *args[1:])

    handles = [model.get_submodule(name).register_forward_pre_hook(rounded) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def to_json(found: Sequence[Setting]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]
