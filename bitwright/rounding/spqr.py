"""SpQR: GPTQ that keeps as they are the weights it would hurt most (arXiv 2306.03078; the competitor that card quantease names).

    gain of keeping w_j = loss of its group - loss of the group without it,   loss = sum_j (w_j - q_j)^2 / U_jj^2,   U^T U = H^-1

with the range placed anew without w_j, which only changes for the two ends of a group; for any other weight the gain is its own
loss. The `fraction` of weights of largest gain leaves, ranges are placed on the rest, and in GPTQ's loop a kept weight passes
on no error: what is stored of it is its compensated value, less the point its code stands for. Differs from the paper: a share of
every matrix where the paper has one threshold for the model (shares are known before a weight is read), gains from the untouched
weights where the paper takes them as the loop reaches a group, groups static. Costs 16 bits and an index per kept weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas, prices
from bitwright.grids.base import Kin
from bitwright.linalg import inverse_factor
from bitwright.rounding.gptq import ordered
from bitwright.terms.base import Json, Terms, decode
from bitwright.terms.sparse import Sparse


@dataclass(frozen=True)
class SpQR:
    """`fraction` of the weights kept; the rest as GPTQ has it."""

    fraction: float = 0.01
    order: Literal["descending", "natural", "group-aware"] = "descending"
    damp: float = 0.01
    block: int = 128
    needs = ("gram",)

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        H, steps = known.gram, ordered(coder, known.gram.diagonal(), self.order)
        order = torch.cat(steps).to(W.device)
        U = known.once(
            ("inverse factor", self.damp, tuple(order.tolist())),
            lambda: inverse_factor(H[order][:, order].to(W.dtype), self.damp, known.note),
        )
        price = torch.empty_like(U.diagonal()).index_copy_(0, order, U.diagonal().square().reciprocal())
        count = Sparse.count((W.shape[0], W.shape[1]), self.fraction)
        kept = torch.zeros(W.numel(), dtype=torch.bool, device=W.device)
        kept[gains(W, coder, price.to(W.dtype)).flatten().topk(count).indices] = True
        kept = kept.view(W.shape)
        if count:
            coder = coder.again(W.masked_fill(kept, 0))
        exact = self.loop(W, coder, U, [step.to(W.device) for step in steps], kept)
        dense = coder.terms(exact.masked_fill(kept, 0))
        return (*dense, Sparse.of(exact - decode(dense).to(W.dtype), count, kept.to(W.dtype))) if count else dense

    def loop(
        self,
        W: Float[Tensor, "out inp"],
        coder: Coder,
        U: Float[Tensor, "inp inp"],
        steps: Sequence[Tensor],
        kept: Bool[Tensor, "out inp"],
    ) -> Float[Tensor, "out inp"]:
        """Every weight as it is stored, once all errors have been passed on."""
        order = torch.cat(list(steps))
        rest, kept = W[:, order].contiguous(), kept[:, order]
        errors, at, begun = torch.zeros_like(rest), 0, 0
        for step in steps:
            here = slice(at, at + len(step))
            q = torch.where(kept[:, here], rest[:, here], coder.snap(rest[:, here], step.cpu()))
            errors[:, here] = torch.linalg.solve_triangular(U[here, here], rest[:, here] - q, upper=True, left=False)
            rest[:, here], at = q, here.stop
            end = min(begun + self.block, len(order))
            rest[:, at:end].addmm_(errors[:, here], U[here, at:end], alpha=-1)
            if at >= end:  # the block is done, the columns to its right get all of it at once
                rest[:, at:].addmm_(errors[:, begun:at], U[begun:at, at:], alpha=-1)
                begun = at
        return rest[:, order.argsort()]

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        count = Sparse.count(shape, self.fraction)
        return (*metas(shape, bands), *((Sparse.foretold(shape, count),) if count else ()))


def gains(W: Float[Tensor, "out inp"], coder: Coder, price: Float[Tensor, "inp"]) -> Float[Tensor, "out inp"]:
    """What keeping each weight alone would save."""
    saved = torch.zeros_like(W)
    for i, (band, p) in enumerate(zip(coder.bands, coder.params)):
        shape, own = coder.inner(i), prices(band, W, coder.weight)
        x, d = (band.layout.split(band.take(M)) for M in (W, price.expand(W.shape)))
        kin = Kin(band.layout.tiles(shape)[1], {n: p[n] for n, leaf in band.grid.leaves.items() if leaf.shared != 1})
        loss = (x - band.grid.decode(band.grid.encode(x, p), p)).square() * d
        found = loss.clone()
        for end in (x.argmax(1, keepdim=True), x.argmin(1, keepdim=True)):
            rest = x.scatter(1, end, 0)
            q = band.grid.fit(rest, own, kin)
            left = ((rest - band.grid.decode(band.grid.encode(rest, q), q)).square() * d).scatter(1, end, 0)
            found.scatter_(1, end, (loss.sum(1) - left.sum(1))[:, None])
        columns = slice(None) if band.columns is None else band.columns.long()
        saved[:, columns] = band.layout.join(found, shape)
    return saved
