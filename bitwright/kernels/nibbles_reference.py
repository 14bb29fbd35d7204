"""Nibbles of vectors in plain torch: any device, and the definition of what the others compute."""

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

TOGETHER, BEAM = 8, 8  # nibbles of one run that are chosen together, sums of them that are held meanwhile


def together(starts: Int32[Tensor, "t"], widths: Int32[Tensor, "t"]) -> list[tuple[int, int]]:
    """Neighbouring nibbles on the same run, first and last + 1."""
    found, runs = list[tuple[int, int]](), list(zip(starts.tolist(), widths.tolist()))
    for t, run in enumerate(runs):
        first, last = found[-1] if found else (0, 0)
        if found and runs[first] == run and last - first < TOGETHER:
            found[-1] = (first, t + 1)
        else:
            found.append((t, t + 1))
    return found


def coded(
    y: Float32[Tensor, "n dims"], starts: Int32[Tensor, "t"], widths: Int32[Tensor, "t"], points: Float32[Tensor, "t 16 w"]
) -> UInt8[Tensor, "n t"]:
    rest, codes = y.clone(), y.new_empty(len(y), len(starts), dtype=torch.uint8)
    for first, last in together(starts, widths):
        start, width = int(starts[first]), int(widths[first])
        part = rest[:, start : start + width]
        left, sums = part[:, None], y.new_empty(len(y), 1, 0, dtype=torch.long)  # of every sum held: what it leaves, its nibbles
        for own in points[first:last, :, :width]:
            gap = own.square().sum(1) - 2 * left @ own.T + left.square().sum(2, keepdim=True)
            best = gap.flatten(1).topk(min(BEAM, gap[0].numel()), largest=False).indices
            held, chosen = best // 16, best % 16
            left = left.gather(1, held[:, :, None].expand(-1, -1, width)) - own[chosen]
            sums = torch.cat([sums.gather(1, held[:, :, None].expand(-1, -1, sums.shape[2])), chosen[:, :, None]], 2)
        codes[:, first:last] = sums[:, 0].to(torch.uint8)
        part[:] = left[:, 0]
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
