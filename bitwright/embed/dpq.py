"""D-PQED: a product quantizer and a small decoder trained for matching (arXiv 2407.15540, ECCV 2024; card: dpqe).

    c = (nearest of K points of each of M parts of x),   x^ = norm(c + MLP(c))
    min   |x - x^|^2 + w [ |x - x^|^2 - |x - x^_j|^2 + margin ]_+ + 0.3 w [ |x^ - x^_a|^2 - |x^ - x^_b|^2 ]_+

j: the other item whose x^ is nearest to x (matching is float against code). a: the item nearest to x; b: the one whose x^ is
nearest to x^ among all others, which is farther than a by the originals. All of one batch, that is of one scene.
Differs from the paper: the start is k-means in every part with an MLP that adds nothing, which is plain product quantization; the
best on held-out items by the same loss is kept; the form of the third term, margins and weights are ours (not published).
A scan of tables cannot read a decoder that is no matrix, so this is no `Codec`, whatever K: as in the paper, codes are decoded once
on load and searched as floats (or coded again). Parameters are stored, and judged, in half precision.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from bitwright.embed.learning import descend, quiet, split
from bitwright.errors import BadRequest
from bitwright.grids.clusters import closest, kmeans
from bitwright.training.loop import Training

RANKED = 0.3  # the share of the third term in what triplets add


@dataclass(frozen=True, eq=False)
class Dpq:
    """Fitted, for vectors of length 1."""

    points: Float32[Tensor, "parts k w"]
    decoder: nn.Module

    @classmethod
    def start(cls, x: Float[Tensor, "n inp"], parts: int, k: int = 256, hidden: int = 64, seed: int = 0) -> "Dpq":
        """Product quantization. Raises BadRequest where the parts are not equal, or items fewer than points."""
        if x.shape[1] % parts or not 2 <= k <= 256 or len(x) < k:
            raise BadRequest(
                f"{len(x)} vectors of {x.shape[1]} dimensions make no {parts} parts of {k} points; let the parts divide the "
                "dimensions, and take at most 256 points and no more than there are vectors."
            )
        alike = torch.ones(len(x))
        points = torch.stack([kmeans(part, alike, k, 25, seed) for part in normalize(x.float()).chunk(parts, 1)])
        return cls(points, quiet(x.shape[1], hidden, x.shape[1], seed)).stored()

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "n inp"],
        parts: int = 4,
        k: int = 256,
        hidden: int = 64,
        margin: float = 0.3,
        triplets: float = 1.0,
        rate: float = 1e-3,
        batch: int = 512,
        held: float = 0.1,
        how: Training = Training(steps=1500),
    ) -> "Dpq":
        """For the descriptors of one scene. `triplets`: the weight of the second and third term (0: reconstruction alone)."""
        dpq, x = cls.start(x, parts, k, hidden, how.seed), normalize(x.float())
        learned, judging = split(len(x), held, how.seed)
        dpq.points.requires_grad_()

        def loss(own: Dpq, rows: Int64[Tensor, "b"]) -> Tensor:
            made = own.decode(own.encode(x[rows]))
            return objective(x[rows], made, margin, triplets)

        moved = [dpq.points, *dpq.decoder.parameters()]
        descend(
            [{"params": moved, "lr": rate}],
            lambda rows, _: loss(dpq, learned[rows]),
            lambda: float(loss(dpq, judging)),
            len(learned),
            batch,
            how,
        )
        return cls(dpq.points.detach(), dpq.decoder).stored()

    def stored(self) -> "Dpq":
        """Every parameter as half precision has it."""
        for parameter in self.decoder.parameters():
            parameter.data = parameter.data.half().float()
        return Dpq(self.points.half().float(), self.decoder)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n inp"]) -> UInt8[Tensor, "n parts"]:
        parts = normalize(x.float()).chunk(len(self.points), 1)
        return torch.stack([closest(part, points) for part, points in zip(parts, self.points)], 1).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "n parts"]) -> Float32[Tensor, "n inp"]:
        """Of length 1."""
        chosen = torch.cat([points[c.long()] for points, c in zip(self.points, codes.T)], 1)
        return normalize(chosen + self.decoder(chosen))

    def bytes(self, count: int) -> int:
        """Of the codes of so many vectors, of the points, and of the decoder."""
        parts, k, _ = self.points.shape
        parameters = self.points.numel() + sum(p.numel() for p in self.decoder.parameters())
        return math.ceil(count * parts * math.log2(k) / 8) + 2 * parameters


def objective(x: Float32[Tensor, "b inp"], made: Float32[Tensor, "b inp"], margin: float, triplets: float) -> Tensor:
    """Distances of unit vectors are 2 - 2 <., .>."""
    itself = torch.eye(len(x), dtype=torch.bool)
    near = lambda a, b: (2 - 2 * a @ b.T).masked_fill(itself, torch.inf)  # noqa: E731
    own = (x - made).square().sum(1)
    mixed = (own - near(x, made).amin(1) + margin).relu()
    among, first = near(made, made), near(x, x).argmin(1, keepdim=True)
    wrong = among.scatter(1, first, torch.inf).amin(1)
    ranked = (among.gather(1, first)[:, 0] - wrong).relu()
    return (own + triplets * (mixed + RANKED * ranked)).mean()


def room(budget: int, inp: int, parts: int, k: int = 256, hidden: int = 64) -> int:
    """How many vectors fit into `budget` bytes beside the points and the decoder."""
    fixed = 2 * (k * inp + hidden * (2 * inp + 1) + inp)
    return max(0, int((budget - fixed) * 8 // (parts * math.log2(k))))


def allocate(
    x: Float[Tensor, "n inp"],
    worth: Float[Tensor, "n"],
    budget: int,
    make: Callable[[Float[Tensor, "kept inp"], int], Dpq],
    score: Callable[[Dpq, Int64[Tensor, "kept"]], float],
    choices: Sequence[int] = (1, 2, 4, 8, 16, 32),
    k: int = 256,
    hidden: int = 64,
) -> tuple[Dpq, Int64[Tensor, "kept"], dict[int, float]]:
    """The quantizer and the rows to keep when vectors and parts share `budget` bytes, and the score of every number of parts.

    For each of `choices` as many vectors as fit, the worthiest first, are coded by `make(vectors, parts)` and judged by `score` on
    queries of one's own. What a vector is worth depends on which others are there to be mistaken for it, so the loss is no sum over
    vectors and the solvers of allocation/ have nothing to add up. Raises BadRequest where not even the points fit."""
    order, found = worth.argsort(descending=True, stable=True), {}
    for parts in choices:
        kept = order[: room(budget, x.shape[1], parts, k, hidden)]
        if len(kept) >= k:
            dpq = make(x[kept], parts)
            found[parts] = (score(dpq, kept), dpq, kept)
    if not found:
        raise BadRequest(f"{budget} bytes hold no {k} vectors beside {k} points and a decoder; give more bytes or fewer points.")
    _, dpq, kept = max(found.values(), key=lambda one: one[0])
    return dpq, kept, {parts: one[0] for parts, one in found.items()}
