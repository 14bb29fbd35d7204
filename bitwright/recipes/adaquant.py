"""adaquant: arXiv 2006.10518: weights and their ranges nudged together, straight through the rounding. Card: adaquant.

With `activations` (bits of the inputs, one range per matrix) it is the paper's calibration layer by layer, where the ranges of the
inputs are learned too. `norms` and `biases` are its corrections of the finished model: folded batch norms estimated afresh, and
biases tuned by the logits."""

from dataclasses import replace

from bitwright.activations.static import Static
from bitwright.corrections.bias import Biases
from bitwright.corrections.norm_stats import NormStatistics
from bitwright.grids.integer import Integer
from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.straight_through import StraightThrough
from bitwright.training.scopes import Layer


def adaquant(
    bits: int = 4,
    group: int | None = 128,
    steps: int = 400,
    start: Start = "nearest",
    rate: float = 1e-2,
    activations: int | None = None,
    norms: bool = False,
    biases: bool = False,
) -> Recipe:
    joint = StraightThrough(rate, rate, start=begun(start))
    if activations is not None:
        joint = replace(joint, input_rate=rate, scope=Layer(online=True))
    after = (*((NormStatistics(),) if norms else ()), *((Biases(),) if biases else ()))
    inputs = None if activations is None else Static(Integer(2**activations), "mean-range")
    return replace(trained(joint, bits, group, steps, "adaquant"), activations=inputs, after=after)
