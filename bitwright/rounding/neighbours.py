"""Neighbours: the points of a grid that lie next to a weight, and where it lies between them."""

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import points
from bitwright.grids.uneven import Uneven, level_counts
from bitwright.terms.coded import Coded, narrowed


def candidates(term: Coded, x: Float[Tensor, "out k"], count: int) -> Ints[Tensor, "c out m"]:
    """Codes: of the points below and above on a scalar grid where `count` is 2, else of the nearest; the very nearest again where a
    group has no more points. Raises BadRequest where the grid does not have as many."""
    grid, narrow = term.grid, narrowed(term.layout, term.grid.width)
    if count > grid.levels:
        raise BadRequest(f"A choice among {count} candidates needs a grid of as many points, not {grid.levels}; give it fewer.")
    every = points(grid, term.params)
    most = torch.full((len(every), 1), grid.levels, device=x.device)
    if isinstance(grid, Uneven):
        most = level_counts(grid, term.params)[:, None].to(x.device)
    vectors = term.layout.split(x).reshape(len(every), -1, grid.width)
    straddled = grid.width == 1 and count == 2
    found = around(vectors[..., 0], every[..., 0], most) if straddled else nearest(vectors, every, most, count)
    return torch.stack([narrow.join(c, (x.shape[0], x.shape[1] // grid.width)) for c in found])


def around(x: Float[Tensor, "g n"], points: Float[Tensor, "g k"], most: Ints[Tensor, "g 1"]) -> Ints[Tensor, "2 g n"]:
    """The points below and above, the outermost two beyond the ends; of every group, only the first `most` codes count."""
    there = torch.arange(points.shape[1], device=x.device) < most
    ascending, code = points.to(x.dtype).masked_fill(~there, torch.inf).sort(1)
    above = torch.searchsorted(ascending.contiguous(), x.contiguous())
    above = torch.minimum(above.clamp_min(1), most - 1)
    return torch.stack([code.gather(1, (above - 1).clamp_min(0)), code.gather(1, above)])


def nearest(
    x: Float[Tensor, "g n v"], points: Float[Tensor, "g k v"], most: Ints[Tensor, "g 1"], count: int, chunk: int = 1 << 24
) -> Ints[Tensor, "c g n"]:
    """The `count` nearest, the very nearest first."""
    there, found = torch.arange(points.shape[1], device=x.device) < most, []
    step = max(1, chunk // (x.shape[1] * points.shape[1] * points.shape[2]))
    for part, of, own in zip(x.split(step), points.to(x.dtype).split(step), there.split(step)):
        far = torch.cdist(part, of).masked_fill(~own[:, None], torch.inf)
        least = far.topk(count, dim=2, largest=False, sorted=True)
        found.append(torch.where(least.values.isfinite(), least.indices, least.indices[..., :1]))
    return torch.cat(found).permute(2, 0, 1)


def position(x: Float[Tensor, "out m v"], points: Float[Tensor, "2 out m v"]) -> Float[Tensor, "out m"]:
    """Where a vector lies on the way between its two candidates, from 0 to 1; halfway where they are one."""
    way = points[1] - points[0]
    length = way.square().sum(-1)
    along = ((x - points[0]) * way).sum(-1) / torch.where(length == 0, 1.0, length)
    return torch.where(length == 0, 0.5, along.clamp(0, 1))
