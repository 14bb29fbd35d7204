"""GPTQ: round column by column, each error pushed into the columns still to come (arXiv 2210.17323; card: baselines).

    min tr((W - Q) H (W - Q)^T).   U upper with U^T U = H^-1:   e_j = (w_j - q_j) / U_jj,   W[:, k] -= e_j U_jk for k > j

which is the best real-valued reaction of the later columns to the error of column j. Columns of a grid of vectors move
together: U_jj is then the small triangle on the diagonal. Lazy blocks: inside a block of 128 the update is column by column,
what is right of it is updated by one product per block; any block size gives the same codes up to rounding of the sums.

Two choices decide what "GPTQ" means, and are named here:
    order   descending (by second moment, the default), natural, group-aware (inside groups, then groups by their largest)
    groups  static (parameters from the untouched weights, the default) or dynamic (from the weights as compensated so far,
            when the first column of a group is reached; with descending order the groups then follow the order and the
            permutation is stored, 32 bits per input, unless groups lie inside one column)
`llm_compressor` and `gptqmodel` are the presets equal to those tools' defaults. Dead inputs need no special case: damping puts
1 on their diagonal and nothing moves. Differs from the released code: dynamic parameters see the fully updated weights, where
that code reads them stale inside a block. O(out inp^2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas
from bitwright.kernels import dispatch
from bitwright.linalg import inverse_factor
from bitwright.terms.base import Json, Terms


@dataclass(frozen=True)
class GPTQ:
    """`damp` is a share of the mean second moment; `block` columns are updated lazily together."""

    order: Literal["descending", "natural", "group-aware"] = "descending"
    groups: Literal["static", "dynamic"] = "static"
    damp: float = 0.01
    block: int = 128
    needs = ("gram",)

    @classmethod
    def llm_compressor(cls) -> "GPTQ":
        """Defaults of llm-compressor 0.14: static groups in activation order, damping 1 %, blocks of 128."""
        return cls("descending", "static", 0.01, 128)

    @classmethod
    def gptqmodel(cls) -> "GPTQ":
        """Defaults of GPTQModel 7.7: group-aware order, parameters as the loop reaches a group, damping 5 %."""
        return cls("group-aware", "dynamic", 0.05, 128)

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        H = known.gram
        if self.groups == "dynamic" and self.order == "descending":
            coder = follow(coder, W, H)
        steps = ordered(coder, H.diagonal(), self.order)
        order = torch.cat(steps).to(W.device)
        U = known.once(
            ("inverse factor", self.damp, tuple(order.tolist())),
            lambda: inverse_factor(H[order][:, order].to(W.dtype), self.damp, known.note),
        )
        rest = W[:, order].contiguous()
        at, last = 0, None
        for chunk in self.chunks(coder, steps):
            if self.groups == "dynamic" and begins_group(coder, chunk[0], last):
                now = torch.empty_like(W)
                now[:, order] = rest
                coder = coder.refit(now, chunk[0])
            widths = [len(step) for step in chunk]
            end = at + sum(widths)
            q, e = dispatch.gptq_block(rest[:, at:end], U[at:end, at:end], coder, order[at:end], widths)
            rest[:, at:end] = q
            rest[:, end:].addmm_(e, U[at:end, end:], alpha=-1)
            at, last = end, chunk[-1]
        return coder.terms(rest[:, order.argsort()])

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        permuted = self.groups == "dynamic" and self.order == "descending"
        return metas(shape, [Band(b.grid, b.layout, inputs(b, shape)) if permuted and mixes(b, shape) else b for b in bands])

    def chunks(self, coder: Coder, steps: list[Ints[Tensor, "_"]]) -> list[list[Ints[Tensor, "_"]]]:
        """Steps cut into lazy blocks; where parameters are dynamic, also at the start of every group."""
        found: list[list[Tensor]] = [[]]
        width = 0
        for step in steps:
            cut = width >= self.block or (self.groups == "dynamic" and begins_group(coder, step, found[-1][-1] if width else None))
            if width and cut:
                found.append([])
                width = 0
            found[-1].append(step)
            width += len(step)
        return found


def ordered(coder: Coder, energy: Float[Tensor, "inp"], order: str) -> list[Ints[Tensor, "_"]]:
    """The coder's steps in the order in which they will be rounded."""
    steps, energy = coder.steps(), energy.cpu()
    if order == "natural":
        return steps
    which = torch.repeat_interleave(torch.arange(len(steps)), torch.tensor([len(s) for s in steps]))
    own = energy.new_zeros(len(steps)).index_add_(0, which, energy[torch.cat(steps)])
    if order == "descending":
        return [steps[i] for i in own.argsort(descending=True, stable=True).tolist()]
    band, place = coder.home
    sizes = [b.layout.block(coder.inner(i))[1] for i, b in enumerate(coder.bands)]
    group = [(int(band[s[0]]), int(place[s[0]]) // sizes[int(band[s[0]])]) for s in steps]
    peak: dict[tuple[int, int], float] = {}
    for g, e in zip(group, own.tolist()):
        peak[g] = max(peak.get(g, 0.0), e)
    return [steps[i] for i in sorted(range(len(steps)), key=lambda i: (-peak[group[i]], group[i], -float(own[i])))]


def begins_group(coder: Coder, step: Ints[Tensor, "v"], before: Ints[Tensor, "w"] | None) -> bool:
    """Whether a step lies in another group of columns than the step before it (None: it is the first)."""
    if before is None:
        return True
    (b, groups), (c, others) = coder.groups(step), coder.groups(before)
    return b != c or int(groups[0]) != int(others[0])


def follow(coder: Coder, W: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"]) -> Coder:
    """Bands whose groups follow the descending order of their inputs' second moments."""
    bands = []
    for band in coder.bands:
        if not mixes(band, (W.shape[0], W.shape[1])):
            bands.append(band)
            continue
        vectors = inputs(band, (W.shape[0], W.shape[1])).to(W.device).view(-1, band.grid.width)
        rank = H.diagonal()[vectors].sum(1).argsort(descending=True, stable=True)
        bands.append(Band(band.grid, band.layout, vectors[rank].flatten()))
    return Coder.fit(W, bands, coder.weight, coder.shared)


def inputs(band: Band, shape: tuple[int, int]) -> Ints[Tensor, "k"]:
    return torch.arange(shape[1]) if band.columns is None else band.columns


def mixes(band: Band, shape: tuple[int, int]) -> bool:
    """Whether its groups hold more than the columns of one step; else any order of the columns leaves them whole."""
    return band.layout.block((shape[0], len(inputs(band, shape))))[1] > band.grid.width
