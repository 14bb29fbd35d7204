"""Codecs by name, on one dial: stored bits per dimension of the vector.

rotated    any vectors, hardly any training: a random rotation and the same points for every coordinate
uniform    as `rotated`, the points equally spaced
itq        as `rotated`, the rotation chosen so that signs lose least
product    sixteen learned points per run of neighbouring coordinates
residual   sixteen learned points of the whole space, nibble upon nibble
allotted   principal coordinates, each with the bits that it is worth (our default)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bitwright.embed.books import Allotted, Maker, Product, Residual
from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.levels import Filled, Scalar, Spacing
from bitwright.embed.projections import Itq, Principal, Projection, Rotation
from bitwright.errors import BadRequest

LEAST, MOST = 0.25, 8.0


def scalar(projection: Projection, spacing: Spacing = "lloyd-max") -> Callable[[int, float], tuple[Projection, Maker, int]]:
    """Below one bit as many coordinates as pay, above it all of them, on grids that fill the nibbles."""

    def parts(dim: int, bits: float) -> tuple[Projection, Maker, int]:
        stop = next((b for b in (8, 4, 2, 1) if b <= bits), 1)
        whole = 4 // min(stop, 4)
        maker = Filled(stop, spacing) if stop < 8 else Scalar(256, "uniform")
        return projection, maker, min(dim, int(bits * dim / stop)) // whole * whole

    return parts


NAMED: dict[str, Callable[[int, float], tuple[Projection, Maker, int]]] = {
    "allotted": lambda dim, bits: (Principal(), Allotted(), dim),
    "rotated": scalar(Rotation()),
    "uniform": scalar(Rotation(), "uniform"),
    "itq": scalar(Itq()),
    "product": lambda dim, bits: (Rotation(), Product(), dim),
    "residual": lambda dim, bits: (Rotation(), Residual(), dim),
}


def fit(x: Float[Tensor, "n inp"], bits: float = 1.0, name: str = "allotted", **options: Any) -> Codec:
    """A codec for vectors like `x` in at most `bits` per dimension (its factor of 16 bits per vector not counted).

    `options` are those of Codec.fit: metric, scale. Raises BadRequest for an unknown name or bits out of reach.
    """
    if name not in NAMED:
        raise BadRequest(f"There is no codec {name!r}; choose one of {', '.join(NAMED)}.")
    if not LEAST <= bits <= MOST:
        raise BadRequest(f"{bits} bits per dimension are out of reach; choose {LEAST} to {MOST:.0f}.")
    if len(x) < 16:
        raise BadRequest(f"{len(x)} vectors are too few to fit a codec; give at least 16, better thousands.")
    dim = x.shape[1]
    projection, maker, dims = NAMED[name](dim, bits)
    if dims < 1 or int(bits * dim / 4) < 1:
        raise BadRequest(f"{bits} bits for each of {dim} dimensions are less than one nibble; give more bits.")
    return Codec.fit(x, int(bits * dim / 4), projection, maker, dims, name=f"{name}-{bits:g}", **options)


def save(codec: Codec, path: str | Path) -> None:
    """A codec alone: a file of codes without documents, from which `bitwright index add` or Index.open go on."""
    Index.empty(codec).save(path)


def load(path: str | Path) -> Codec:
    """The codec of a file of codes, with documents or without; nothing else of it is read."""
    return Index.open(path).codec
