"""Patches: how a convolution reads its input, so that it is a matrix product.

    x [n, channels, places]  ->  tokens [n · places' · groups, channels/groups · kernel],    y = tokens W^T

A token is what one group of filters sees at one place. With several groups a token meets every row of W [out, inp], but only the
rows of its own group are outputs: `own` keeps those. The groups therefore share one matrix and one statistic of their inputs, the
mean over them; per group it would be exact, and `groups` times as large.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Patches:
    """Geometry of an nn.Conv1d or nn.Conv2d. `pad`: as torch.nn.functional.pad takes it; `mode`: what stands there."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]
    mode: str
    groups: int

    @classmethod
    def of(cls, conv: Any) -> "Patches":
        pad = tuple(conv._reversed_padding_repeated_twice)  # also where padding is "same"
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return cls(conv.kernel_size, conv.stride, conv.dilation, pad, mode, conv.groups)

    def tokens(self, x: Float[Tensor, "n channels *places"]) -> Float[Tensor, "tokens inp"]:
        """Image by image, place by place, group by group."""
        x = F.pad(x, self.pad, self.mode)
        flat = x if len(self.kernel) == 2 else x[:, :, None]  # a line is an image of one row
        one = () if len(self.kernel) == 2 else (1,)
        seen = F.unfold(flat, one + self.kernel, one + self.dilation, 0, one + self.stride)
        n, width, places = seen.shape
        return seen.view(n, self.groups, width // self.groups, places).permute(0, 3, 1, 2).reshape(-1, width // self.groups)

    def convolved(
        self, x: Float[Tensor, "n channels *places"], W: Float[Tensor, "out inp"], bias: Float[Tensor, "out"] | None
    ) -> Float[Tensor, "n out *placed"]:
        """The convolution by a matrix, without unfolding x."""
        conv: Any = F.conv2d if len(self.kernel) == 2 else F.conv1d
        found: Tensor = conv(
            F.pad(x, self.pad, self.mode), W.view(len(W), -1, *self.kernel), bias, self.stride, 0, self.dilation, self.groups
        )
        return found

    def own(self, y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """Products of all tokens with all rows, zero where a row is not of the token's group."""
        if self.groups == 1:
            return y
        group = torch.arange(self.groups, device=y.device)
        of_row = group.repeat_interleave(y.shape[1] // self.groups)
        return y.view(-1, self.groups, y.shape[1]).mul(of_row == group[:, None]).view_as(y)

    def outputs(self, y: Float[Tensor, "n out *places"]) -> Float[Tensor, "tokens out"]:
        """What the convolution gave (without bias), token by token: the inverse of `joined`."""
        rows = y.flatten(2).transpose(1, 2).flatten(0, 1)
        return self.own(rows.repeat_interleave(self.groups, 0))

    def joined(self, y: Float[Tensor, "tokens out"], x: Float[Tensor, "n channels *places"]) -> Float[Tensor, "n out *placed"]:
        """The products of the tokens of x as the output of the convolution."""
        sides = [
            (side + before + after - d * (k - 1) - 1) // s + 1
            for side, after, before, k, s, d in zip(
                x.shape[2:], self.pad[-1::-2], self.pad[-2::-2], self.kernel, self.stride, self.dilation, strict=True
            )
        ]
        rows = self.own(y).view(-1, self.groups, y.shape[1]).sum(1)
        return rows.view(len(x), -1, y.shape[1]).transpose(1, 2).reshape(len(x), y.shape[1], *sides)


def patches(module: nn.Module) -> Patches | None:
    """How a module reads its input; None where it reads vectors, as linears do."""
    return Patches.of(module) if isinstance(module, nn.Conv1d | nn.Conv2d) else None
