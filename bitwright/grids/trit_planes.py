"""Trit-planes (PTQTP): a sum of K scaled ternary planes, that is 3^K points per group shaped by K numbers.

    x^ = sum_k a_k t_k,   t_k in {-1, 0, 1};      min over a, t of  sum_j d_j (x_j - x^_j)^2,   d = 1 or the data's weight

The two half-steps alternate: the scales by a K x K ridge regression for given planes, the planes by trying all 3^K tuples for
given scales. Order of the tuples is the tie rule (zero first, then sparser, then finer planes): without it planes stay equal
for ever. Source: arXiv 2509.16989, card ptqtp. Differs from the paper: two starts per group (signs, and the best equally
spaced grid of 3^K points, which is a sum of planes too), the better one kept: the paper's start alone is worse than that grid
in one group of seven and misses groups that are exactly two planes; scales are rounded to their stored type before the last
search, so the stored trits are the best for the scales used at run time; and `weighted` puts the data's second moments into
both half-steps. Costs K fp16 numbers per group and twice the paper's fit.
"""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Leaf, Params, better, nearest_point, weighted
from bitwright.grids.scales import Float as FloatScale

START, MOST = 1e-8, 1.0  # ridge: where it starts, where it stops growing
RANGES = 65  # tried for the equally spaced start, from half a step inside the largest value to one and a quarter outside
SICK = 1e6  # squared norm over determinant beyond which the ridge grows


@dataclass(frozen=True)
class TritPlanes:
    """`planes` ternary planes; `weighted` weighs errors by the second moment of the input each weight meets."""

    planes: int = 2
    iters: int = 50
    tol: float = 1e-4
    weighted: bool = False
    scale: FloatScale = FloatScale()
    width = 1

    def __post_init__(self) -> None:
        if not 1 <= self.planes <= 10:  # before anything computes 3^planes
            raise BadRequest(f"Trit-planes are 1 to 10 planes (3 to 59049 levels), not {self.planes}; choose a number in between.")

    @property
    def levels(self) -> int:
        return 3**self.planes

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gram",) if self.weighted else ()

    @property
    def leaves(self) -> dict[str, Leaf]:
        return {"scale": Leaf(self.scale.dtype, count=self.planes)}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        d = weighted(x, weight if self.weighted else None)
        sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)[..., None].expand(-1, -1, self.planes)
        a, b = self.alternate(x, d, sign), self.alternate(x, d, self.trits(x, self.even(x, d)))
        worse = self.loss(x, d, b) < self.loss(x, d, a)
        return {"scale": torch.where(worse[:, None], b, a)}

    def even(self, x: Float[Tensor, "g n"], d: Float[Tensor, "g n"]) -> Float[Tensor, "g k"]:
        """The scales s, 3 s, 9 s, ... whose sums are the best equally spaced grid: many ranges tried, s by least squares."""
        half = self.levels // 2
        top = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        best, scale = x.new_full((len(x), 1), torch.inf), torch.zeros_like(top)
        for i in range(RANGES):
            codes = (x / top * (half - 0.75 + 2 * i / (RANGES - 1))).round().clamp(-half, half)
            s = (d * codes * x).sum(1, keepdim=True) / (d * codes * codes).sum(1, keepdim=True).clamp_min(1e-30)
            loss = (d * (x - s * codes).square()).sum(1, keepdim=True)
            scale, best = torch.where(loss < best, s, scale), torch.minimum(loss, best)
        return scale * 3.0 ** torch.arange(self.planes - 1, -1, -1, device=x.device).to(x.dtype)

    def alternate(self, x: Float[Tensor, "g n"], d: Float[Tensor, "g n"], t: Float[Tensor, "g n k"]) -> Float[Tensor, "g k"]:
        """Scales after alternating from the planes `t` until no scale moves by more than `tol` of the largest, stored."""
        scales = x.new_ones(len(x), self.planes)
        ridge = x.new_full((len(x), 1, 1), START)
        live = torch.arange(len(x), device=x.device)
        for _ in range(self.iters):
            fitted, ridge[live] = regress(x[live], d[live], t, ridge[live])
            moved = (fitted - scales[live]).norm(dim=1) >= self.tol * fitted.norm(dim=1)
            scales[live] = fitted
            live = live[moved]
            if not len(live):
                break
            t = self.trits(x[live], scales[live])
        return self.scale.store(scales.abs())

    def loss(self, x: Float[Tensor, "g n"], d: Float[Tensor, "g n"], stored: Float[Tensor, "g k"]) -> Float[Tensor, "g"]:
        p = {"scale": stored}
        return (d * (self.decode(self.encode(x, p), p) - x).square()).sum(1)

    def trits(self, x: Float[Tensor, "g n"], scales: Float[Tensor, "g k"]) -> Float[Tensor, "g n k"]:
        patterns = self.patterns(x)
        return patterns[nearest_point(x, (scales @ patterns.T)[..., None]).long()]

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        return nearest_point(x, self.points(p)[..., None])

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        return self.points(p).gather(1, c.long())

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Ridge regression of the scales for given trits; kept only where it helps (signs cannot flip, scales are rounded)."""
        d, t = weighted(x, weight), self.patterns(x)[c.long()]
        fitted, _ = regress(x, d, t, x.new_full((len(x), 1, 1), START))
        return better(self, x, c, weight, {"scale": self.scale.store(fitted.abs())}, p)

    def points(self, p: Params) -> Float[Tensor, "g k"]:
        scales = self.scale.read(p["scale"])
        return scales @ self.patterns(scales).T

    def patterns(self, like: Tensor) -> Float[Tensor, "k planes"]:
        order = sorted(product((0, 1, -1), repeat=self.planes), key=lambda t: (sum(map(abs, t)), [abs(v) for v in t]))
        return torch.tensor(order, dtype=like.dtype, device=like.device)


def regress(
    x: Float[Tensor, "g n"], d: Float[Tensor, "g n"], t: Float[Tensor, "g n k"], ridge: Float[Tensor, "g 1 1"]
) -> tuple[Float[Tensor, "g k"], Float[Tensor, "g 1 1"]]:
    """Scales for given planes, and the ridge, grown tenfold where the planes are too alike to tell their scales apart."""
    dt = (d / d.mean(1, keepdim=True))[..., None] * t
    A, b = t.transpose(1, 2) @ dt, (dt.transpose(1, 2) @ x[..., None])
    eye = torch.eye(A.shape[-1], dtype=x.dtype, device=x.device)
    for _ in range(9):
        M = A + ridge * eye
        sick = M.square().sum((1, 2)) > SICK * torch.linalg.det(M).abs()
        ridge = torch.where(sick[:, None, None], (10 * ridge).clamp_max(MOST), ridge)
    return torch.linalg.solve(A + ridge * eye, b)[..., 0], ridge
