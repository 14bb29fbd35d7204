"""The protocol of a quantizer of inputs: an online op on the reader, the same in evaluation and in what is exported.

    y = Q(x) W^t,    Q(x) = decode(encode(x)) on a grid whose parameters come from x itself, or were calibrated

What is calibrated is stored once per matrix, under the names of the grid's parameters. Weights are calibrated on inputs that are
not quantized, as llm-compressor does it.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import Leaf, Params


@runtime_checkable
class Activation(Protocol):
    @property
    def needs(self) -> tuple[str, ...]:
        """The statistic that `calibrate` reads: ("range",) or ("mean-range",), or () where nothing is stored."""

    @property
    def leaves(self) -> dict[str, Leaf]:
        """What is stored of a matrix's inputs."""

    def refusal(self, inp: int) -> str | None:
        """In words, why inputs of this width cannot be quantized so; None where they can."""

    def calibrate(self, bounds: Float[Tensor, "2"]) -> Params:
        """Stored parameters from the least and the largest input that was met."""

    def __call__(self, x: Float[Tensor, "tokens inp"], stored: Params) -> Float[Tensor, "tokens inp"]:
        """The inputs as the product sees them, in the type of x."""


def spec(part: Activation) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types of what is stored of one matrix's inputs."""
    return {name: ((1, leaf.count), leaf.dtype) for name, leaf in part.leaves.items()}


def stored_bits(part: Activation | None) -> int:
    return 0 if part is None else sum(8 * leaf.count * leaf.dtype.itemsize for leaf in part.leaves.values())
