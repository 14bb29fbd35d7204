"""BEBR: recurrent binarization, codes whose every plane says what the planes before it failed to (arXiv 2302.08714; card: bebr).

    b_0 = sgn(W x),   b_{t+1} = b_t + 2^-(t+1) sgn(R_t(x - f_t)),   f_t = B_t(b_t) / |B_t(b_t)|,   score = <b_q, b_x> / |b_q| |b_x|

W, B_t, R_t are small networks, learned from pairs of embeddings (`teaching.py`); the encoder that made the embeddings is never
touched. A code of u + 1 planes lies on a symmetric uniform grid ({-1.5, -0.5, 0.5, 1.5} for u = 1), so the book is fixed, and
scan, file and index are those of every other codec. Queries are codes too (as in the paper), or W q against codes.
Differs from the paper: every network is a linear map plus a perceptron whose last layer starts at 0, and the linear maps start as
sqrt(n) times a rotation and its transpose: untrained, this is the code of a rotation, and training can only be kept where it
helps. Batch norms are gone, for the scale of every layer's input is known; there is one hidden layer (paper: one for BEBR,
three for its baselines) and no queue (off in the released configuration). sgn(0) = 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed.book import Book
from bitwright.embed.codec import Codec, vectors
from bitwright.embed.learning import Network
from bitwright.embed.projections import orthonormal
from bitwright.embed.teaching import Kept, Likeness, teach
from bitwright.embed.views import Asked, below
from bitwright.errors import BadRequest
from bitwright.progress import Progress, silent
from bitwright.terms.base import Json
from bitwright.training.loop import Training


@dataclass(frozen=True, eq=False)
class Recurrent:
    """`networks`: W, B_0, R_0, B_1, R_1, ... What is seen of a vector is its code, on the grid."""

    networks: tuple[Network, ...]

    @classmethod
    def start(cls, matrix: Float32[Tensor, "dims inp"], planes: int = 2, hidden: int = 512, seed: int = 0) -> "Recurrent":
        """Not yet trained: the planes of the coordinates `matrix` x, the rows of which have length 1."""
        (dims, inp), dice = matrix.shape, torch.Generator().manual_seed(seed)
        down, up = inp**0.5 * matrix, matrix.T / inp**0.5
        maps = [(down, 1.0), *[(up, dims**0.5), (down, 1.0)] * (planes - 1)]  # with the length of their inputs
        return cls(tuple(Network.start(skip, hidden, length, dice) for skip, length in maps))

    @property
    def dim(self) -> int:
        return self.networks[0].skip.shape[1]

    @property
    def dims(self) -> int:
        return len(self.networks[0].skip)

    @property
    def planes(self) -> int:
        return len(self.networks) // 2 + 1

    def seen(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n dims"]:
        b = sgn(self.networks[0](x))
        for t, (back, again) in enumerate(zip(self.networks[1::2], self.networks[2::2])):
            b = b + sgn(again(x - normalize(back(b)))) / 2 ** (t + 1)
        return b

    def asked(self, q: Float32[Tensor, "q inp"]) -> Asked:
        return self.recalled(normalize(self.networks[0](q)))

    def recalled(self, y: Float32[Tensor, "q dims"]) -> Asked:
        return Asked(y, y.new_zeros(len(y)))

    def vectors(self, y: Float32[Tensor, "n dims"]) -> Float32[Tensor, "n inp"]:
        """Of length 1; by the transposed linear map, so only roughly where much was learned."""
        return normalize(y @ self.networks[0].skip)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": t for i, network in enumerate(self.networks) for name, t in network.tensors().items()}

    def meta(self) -> dict[str, Json]:
        return {"kind": "bebr"}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> "Recurrent":
        count = 1 + max(int(name.split(".")[0]) for name in tensors)
        return cls(tuple(Network(**below(tensors, str(i))) for i in range(count)))


def sgn(x: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """1 or -1; the gradient passes where |x| <= 1."""
    inside = x.clamp(-1, 1)
    return inside + (torch.where(x < 0, -1.0, 1.0) - inside).detach()


def frame(inp: int, dims: int, seed: int = 0) -> Float32[Tensor, "dims inp"]:
    """Rows of as many random rotations as it takes."""
    return torch.cat([orthonormal(inp, seed + i) for i in range(-(-dims // inp))])[:dims].contiguous()


def planes(dims: int, count: int) -> Book:
    """All sums of +-1, +-1/2, ... in every coordinate: four, two or one coordinates to a nibble of 1, 2 or 4 planes. Raises
    BadRequest where coordinates do not fill nibbles."""
    if dims % 4:
        raise BadRequest(f"{dims} coordinates of {count} planes do not fill nibbles; take a multiple of 4.")
    runs, at, signs = [], 0, torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    while at < count:
        together = next(size for size in (4, 2, 1) if size <= count - at)
        points = (signs.view(16, -1, together) * 2.0 ** -torch.arange(at, at + together)).sum(2)
        runs += [(start, points) for start in range(0, dims, 4 // together)]
        at += together
    return Book.listed(runs, dims)


def codec(view: Recurrent, name: str = "bebr") -> Codec:
    return Codec(view, planes(view.dims, view.planes), "cosine", "unit", name)


def fit(
    x: Float[Tensor, "n inp"],
    count: int = 2,
    dims: int | None = None,
    how: Training = Training(),
    progress: Progress = silent,
) -> Codec:
    """`count` planes of `dims` coordinates (None: as many as x has) for vectors like x, of which no pairs are known; every tenth
    is for judging what was learned. Raises BadRequest for bad vectors."""
    x = vectors(x, None, "cosine")
    judging = torch.arange(len(x)) % 10 == 0
    held, rest = x[judging], x[~judging]
    dims = dims or x.shape[1]
    start = codec(Recurrent.start(frame(x.shape[1], dims), count), f"bebr-{count}x{dims}")
    worth = Kept(thinned(held, 1000), thinned(rest, 16_000))
    return replace(start, view=teach(start.view, Likeness(rest), worth, how, step=5e-4, progress=progress).view)


def thinned(x: Float32[Tensor, "n inp"], most: int) -> Float32[Tensor, "some inp"]:
    """Every so many, for all against all take time and memory."""
    return x[:: -(-len(x) // most)]
