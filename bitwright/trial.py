"""Trial: the float model, into which compressed matrices are put for one measurement of KL on a few windows.

The states before every block are kept, so a measurement runs from the first block that differs; the weights come back afterwards.
Holds the whole model in fp32: what a probe end to end costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitwright.calibrate.data import Windows
from bitwright.calibrate.gradients import head_of
from bitwright.calibrate.stream import Rows, embed, run
from bitwright.checkpoint import Checkpoint, fill, skeleton
from bitwright.evaluation.divergence import divergence
from bitwright.evaluation.hidden import Hidden
from bitwright.sites import Site, sites
from bitwright.wiring import Wiring

BATCH = 8


@dataclass(eq=False)
class Trial:
    """`before[b][k]`: the states of batch k before block b."""

    windows: Windows
    blocks: Sequence[nn.Module]
    sites: Sequence[Mapping[str, Site]]
    norm: nn.Module
    head: nn.Module
    rows: Sequence[Rows]
    before: Sequence[Sequence[Tensor]]
    base: Hidden

    @classmethod
    def of(cls, source: Checkpoint, wiring: Wiring, windows: Windows, device: torch.device) -> "Trial":
        model: Any = skeleton(source.config)
        blocks = wiring.block_list(model)
        before: list[list[Tensor]] = []
        for name in (*wiring.embed, *wiring.norm):
            fill(model.get_submodule(name), source, name)
        rows = [r.to(device) for r in embed(model.base_model, blocks, windows.ids, BATCH, False)]
        for i, block in enumerate(blocks):
            fill(block, source, f"{wiring.blocks}.{i}", device)
        norm, head = model.get_submodule(wiring.norm[-1]).to(device), head_of(source, wiring).to(device)
        named = [sites(block, f"{wiring.blocks}.{i}.") for i, block in enumerate(blocks)]
        hidden = [r.hidden for r in rows]
        trial = cls(windows, list(blocks), named, norm, head, rows, before, Hidden(torch.empty(0, 0, 0), torch.float32))
        for i in range(len(blocks)):
            before.append(hidden)
            hidden = trial.through(i, hidden)
        trial.base = trial.after(hidden)
        return trial

    def through(self, block: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [run(self.blocks[block], h, r.calls[block]) for h, r in zip(hidden, self.rows)]

    def after(self, hidden: Sequence[Tensor]) -> Hidden:
        with torch.no_grad():
            return Hidden(torch.cat([self.norm(h).float().cpu() for h in hidden]), torch.float32)

    def kl(self, weights: Mapping[str, Float[Tensor, "out inp"]]) -> Float[Tensor, "windows"]:
        """Mean KL per token on every window, of the float model with these matrices replaced."""
        if not weights:
            return torch.zeros(len(self.windows.ids), dtype=torch.float64)
        at = {name: i for i, here in enumerate(self.sites) for name in here}
        saved = {name: self.sites[at[name]][name].matrix().clone() for name in weights}
        first = min(at[name] for name in weights)
        try:
            for name, W in weights.items():
                self.sites[at[name]][name].put(W)
            hidden = list(self.before[first])
            for i in range(first, len(self.blocks)):
                hidden = self.through(i, hidden)
        finally:
            for name, W in saved.items():
                self.sites[at[name]][name].put(W)
        tokens = divergence(self.base, self.head, self.after(hidden), self.head, self.windows.ids)
        return torch.from_numpy(tokens.kl.mean(1))
