"""Nibbles of vectors in plain torch: any device, and the definition of what the others compute."""

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from bitwright.grids.clusters import closest


def coded(
    y: Float32[Tensor, "n dims"], starts: Int32[Tensor, "t"], widths: Int32[Tensor, "t"], points: Float32[Tensor, "t 16 w"]
) -> UInt8[Tensor, "n t"]:
    rest, codes = y.clone(), y.new_empty(len(y), len(starts), dtype=torch.uint8)
    for t, (start, width) in enumerate(zip(starts.tolist(), widths.tolist())):
        part, own = rest[:, start : start + width], points[t, :, :width]
        chosen = closest(part, own)
        codes[:, t] = chosen
        part -= own[chosen]
    return codes


def decoded(
    codes: UInt8[Tensor, "n t"],
    starts: Int32[Tensor, "t"],
    widths: Int32[Tensor, "t"],
    points: Float32[Tensor, "t 16 w"],
    dims: int,
) -> Float32[Tensor, "n dims"]:
    y = points.new_zeros(len(codes), dims)
    for t, (start, width) in enumerate(zip(starts.tolist(), widths.tolist())):
        y[:, start : start + width] += points[t, codes[:, t].long(), :width]
    return y
