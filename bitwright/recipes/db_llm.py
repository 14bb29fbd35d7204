"""db-llm: arXiv 2402.11960: two binary planes per group of 64, their scales learned by the logits of the float model, ambiguous
tokens weighing more; 2.5 stored bits. `ambiguous` and `gamma` stand for constants that are not public; 0 is plain distillation.
`polish`, `mse` (ours): a better start. `weights`: rate of the weights behind the codes, which stay in the published method as we
read it. Distils on the given text, where the paper lets the float model write its own. Card: db-llm."""

from bitwright.grids.dual_binary import DualBinary
from bitwright.grids.fit import AbsMax, Mse
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.learned_scales import LearnedScales
from bitwright.training.loop import Training
from bitwright.training.scopes import Model


def db_llm(
    group: int | None = 64,
    steps: int = 1000,
    rate: float = 1e-2,
    weights: float = 0.0,
    ambiguous: float = 0.5,
    gamma: float = 1.0,
    mse: bool = True,
    polish: int = 10,
) -> Recipe:
    learned = LearnedScales(weights, rate, scope=Model(ambiguous, gamma), training=Training(steps))
    return Recipe(DualBinary(Mse(2.0) if mse else AbsMax(), polish), Layout(1, group), learned, name="db-llm")
