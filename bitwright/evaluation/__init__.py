"""Evaluation: how a compressed model is measured honestly, always against the model it was made from."""

from bitwright.evaluation.base import Score as Score
from bitwright.evaluation.baseline import Baseline as Baseline
from bitwright.evaluation.divergence import Divergence as Divergence
from bitwright.evaluation.evaluation import Evaluation as Evaluation
from bitwright.evaluation.evaluation import Verdict as Verdict
from bitwright.evaluation.evaluation import paired as paired
from bitwright.evaluation.evaluation import verdict as verdict
from bitwright.evaluation.flips import Flips as Flips
from bitwright.evaluation.flips import compare as compare
from bitwright.evaluation.hidden import Hidden as Hidden
from bitwright.evaluation.hidden import hidden_states as hidden_states
from bitwright.evaluation.images import ImageBaseline as ImageBaseline
from bitwright.evaluation.images import evaluate_images as evaluate_images
from bitwright.evaluation.run import evaluate as evaluate
