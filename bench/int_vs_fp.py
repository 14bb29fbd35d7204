"""Claim (int-vs-fp): direct cast of weights and inputs, zoo:lm: MXINT8 has a lower KL than MXFP8; NVINT4 with a Hadamard matrix of
the block's own size on both operands has a lower one than NVFP4, without it a higher one.

    python bench/int_vs_fp.py

Signal to noise is the mean over the 42 matrices, and over the inputs they meet; KL is on 24 x 512 held-out tokens of the standard
library. The Hadamard matrix has random signs and cancels in the product; it is applied here around the layers and costs no bits.
JSON goes to bench/results/.
"""

import datetime
import json
import math
from pathlib import Path
from typing import Any

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

import bitwright
from bitwright.calibrate.text import text_windows
from bitwright.evaluation import Baseline, evaluate
from bitwright.grids.base import Grid
from bitwright.recipes.int_vs_fp import FORMATS


class Cast(nn.Module):
    """y = Q(x T) Q(W T)^t, T block-diagonal and orthogonal (None: the identity). Keeps what its inputs lost."""

    def __init__(self, linear: nn.Linear, grid: Grid, group: int, turn: Tensor | None):
        super().__init__()
        self.grid, self.group, self.turn = grid, group, turn
        self.weight, self.lost = linear.weight.detach().float(), [0.0, 0.0]
        self.stored, self.db = self.cast(self.weight)

    def cast(self, x: Tensor) -> tuple[Tensor, float]:
        parts = (
            x.reshape(-1, self.group) if self.turn is None else (x.reshape(-1, len(self.turn)) @ self.turn).reshape(-1, self.group)
        )
        p = self.grid.fit(parts)
        found = self.grid.decode(self.grid.encode(parts, p), p)
        noise, power = (found - parts).double().square().sum(), parts.double().square().sum()
        return found.view(x.shape), float(10 * torch.log10(power / noise))

    def forward(self, x: Tensor) -> Tensor:
        found, db = self.cast(x)
        self.lost = [self.lost[0] + db, self.lost[1] + 1]
        return nn.functional.linear(found, self.stored)


def turned(size: int) -> Tensor:
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return signs[:, None] * torch.tensor(hadamard(size), dtype=torch.float32) / math.sqrt(size)


def main() -> None:
    text = text_windows("zoo:lm", "stdlib", 24, 512, "evaluation")
    base = Baseline.of(bitwright.load("zoo:lm"), text, noise_floor=False)
    rows: list[dict[str, Any]] = []
    for name, (grid, group) in FORMATS.items():
        for with_hadamard in (False, True):
            model = bitwright.load("zoo:lm")
            for path, module in list(model.named_modules()):
                if isinstance(module, nn.Linear) and path != "lm_head":
                    model.set_submodule(path, Cast(module, grid, group, turned(group) if with_hadamard else None))
            kl = evaluate(model, base).divergence.kl
            casts = [m for m in model.modules() if isinstance(m, Cast)]
            weights, inputs = (sum(v) / len(casts) for v in ([c.db for c in casts], [c.lost[0] / c.lost[1] for c in casts]))
            rows.append({"format": name, "hadamard": with_hadamard, "kl": kl.value, "low": kl.low, "high": kl.high,
                         "weights_db": weights, "inputs_db": inputs})  # fmt: skip
            how = "Hadamard" if with_hadamard else ""
            print(f"{name:7} {how:8} KL {kl.value:.5f}  weights {weights:.2f} dB  inputs {inputs:.2f} dB", flush=True)
    found = {"date": datetime.date.today().isoformat(), "rows": rows}
    (Path(__file__).parent / "results" / f"int_vs_fp-{found['date']}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
