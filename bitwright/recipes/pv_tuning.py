"""pv-tuning: arXiv 2405.14852: codes and parameters of the whole model tuned against its logits, of the codes only the `share` that
wants to move most at a step. Starts from our default on integers; from another recipe in Python. Card: pv-tuning."""

from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.pv_tuning import PvTuning


def pv_tuning(
    bits: int = 2, group: int | None = 64, steps: int = 400, start: Start = "best", share: float = 0.01, rate: float = 1e-2
) -> Recipe:
    return trained(PvTuning(share, rate=rate, start=begun(start)), bits, group, steps, "pv-tuning")
