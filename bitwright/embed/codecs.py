"""Codecs by name, on one dial: stored bits per dimension of the vector.

rotated    any vectors, hardly any training: a random rotation and the same points for every coordinate
uniform    as `rotated`, the points equally spaced
itq        as `rotated`, the rotation chosen so that signs lose least
product    sixteen learned points per run of neighbouring coordinates
residual   sixteen learned points of the whole space, nibble upon nibble
additive   principal coordinates in groups of equal worth, in each the best sum of eight learned nibbles (our default)
bebr       a plane of bits upon another, by small networks that are trained (minutes) and kept where they help; cosine only
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bitwright.embed import bebr
from bitwright.embed.books import Additive, Maker, Product, Residual, groups
from bitwright.embed.codec import Codec, Metric
from bitwright.embed.index import Index
from bitwright.embed.levels import Filled, Scalar, Spacing
from bitwright.embed.projections import Dealt, Itq, Projection, Rotation
from bitwright.errors import BadRequest
from bitwright.progress import Progress, silent
from bitwright.training.loop import Training

LEAST, MOST = 0.25, 8.0
PLANES = (1, 2, 3, 4)  # that bebr is fitted with


Parts = Callable[[int, float], tuple[Projection, Maker, int]]  # of dimensions and bits: which coordinates, which points, how many
Fit = Callable[..., Codec]  # of vectors, bits per dimension, progress and options


def scalar(projection: Projection, spacing: Spacing = "lloyd-max") -> Parts:
    """Below one bit as many coordinates as pay, above it all of them, on grids that fill the nibbles."""

    def parts(dim: int, bits: float) -> tuple[Projection, Maker, int]:
        stop = next((b for b in (8, 4, 2, 1) if b <= bits), 1)
        whole = 4 // min(stop, 4)
        maker = Filled(stop, spacing) if stop < 8 else Scalar(256, "uniform")
        return projection, maker, min(dim, int(bits * dim / stop)) // whole * whole

    return parts


def linear(parts: Parts) -> Fit:
    """Orthonormal coordinates, and points for them. `options` are those of Codec.fit: metric, scale."""

    def fitted(x: Float[Tensor, "n inp"], bits: float, progress: Progress, **options: Any) -> Codec:
        dim = x.shape[1]
        projection, maker, dims = parts(dim, bits)
        if dims < 1 or int(bits * dim / 4) < 1:
            raise BadRequest(f"{bits} bits for each of {dim} dimensions are less than one nibble; give more bits.")
        return Codec.fit(x, int(bits * dim / 4), projection, maker, dims, progress=progress, **options)

    return fitted


def recurrent(
    x: Float[Tensor, "n inp"], bits: float, progress: Progress, metric: Metric = "cosine", how: Training = Training()
) -> Codec:
    """A plane of all coordinates for every bit; below one bit, one of fewer coordinates."""
    if metric != "cosine":
        raise BadRequest(f"The codec bebr codes directions only and the metric is {metric}; choose cosine or another codec.")
    if bits > 1 and bits not in PLANES:
        raise BadRequest(f"Planes of bebr cannot give {bits:g} bits; choose 1, 2, 3 or 4, or anything below 1.")
    dims = int(min(bits, 1) * x.shape[1]) // 4 * 4
    if not dims:
        raise BadRequest(f"{bits:g} bits for each of {x.shape[1]} dimensions fill no nibble of a plane; give more of both.")
    return bebr.fit(x, int(max(bits, 1)), dims, how, progress)


LINEAR: dict[str, Parts] = {
    "additive": lambda dim, bits: (Dealt(groups(int(bits * dim / 4), dim)), Additive(), dim),
    "rotated": scalar(Rotation()),
    "uniform": scalar(Rotation(), "uniform"),
    "itq": scalar(Itq()),
    "product": lambda dim, bits: (Rotation(), Product(), dim),
    "residual": lambda dim, bits: (Rotation(), Residual(), dim),
}
NAMED: dict[str, Fit] = {**{name: linear(parts) for name, parts in LINEAR.items()}, "bebr": recurrent}


def fit(x: Float[Tensor, "n inp"], bits: float = 1.0, name: str = "additive", progress: Progress = silent, **options: Any) -> Codec:
    """A codec for vectors like `x` in at most `bits` per dimension (its factor of 16 bits per vector not counted).

    `options`: `metric`, cosine or ip; of all but bebr `scale` (codec.py), of bebr `how` it is trained (training/loop.py). Raises
    BadRequest for an unknown name, bits out of reach and bad vectors.
    """
    if name not in NAMED:
        raise BadRequest(f"There is no codec {name!r}; choose one of {', '.join(NAMED)}.")
    if not LEAST <= bits <= MOST:
        raise BadRequest(f"{bits} bits per dimension are out of reach; choose {LEAST} to {MOST:.0f}.")
    if len(x) < 16:
        raise BadRequest(f"{len(x)} vectors are too few to fit a codec; give at least 16, better thousands.")
    return replace(NAMED[name](x, bits, progress, **options), name=f"{name}-{bits:g}")


def save(codec: Codec, path: str | Path) -> None:
    """A codec alone: a file of codes without documents, from which `bitwright index add` or Index.open go on."""
    Index.empty(codec).save(path)


def load(path: str | Path) -> Codec:
    """The codec of a file of codes, with documents or without; nothing else of it is read."""
    return Index.open(path).codec
