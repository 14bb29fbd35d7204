"""tuned: where quality counts more than minutes: `best`, then weights and ranges moved together block by block, then codes and
parameters of the whole model by its logits. Each step is kept only where text that it was not fitted to says so. The last step
holds the model in fp32. Cards: baselines, quantease, adaquant, pv-tuning."""

from bitwright.recipe import Recipe
from bitwright.recipes.best import best
from bitwright.recipes.trained import trained
from bitwright.rounding.pv_tuning import PvTuning
from bitwright.rounding.straight_through import StraightThrough
from bitwright.training.loop import Training


def tuned(bits: int = 3, group: int | None = 64, steps: int = 400, whole: bool = True) -> Recipe:
    blocks = StraightThrough(1e-2, 1e-2, start=best().alone, training=Training(steps=steps))
    joint = PvTuning(rate=3e-3, start=blocks) if whole else blocks
    return trained(joint, bits, group, steps, "tuned")
