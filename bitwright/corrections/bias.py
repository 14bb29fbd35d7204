"""Bias tuning: the codes stay, the biases move until the compressed model answers as the float model does (AdaQuant, arXiv
2006.10518, section 3; card: adaquant).

    min over the biases   KL(float logits || compressed logits),   all but the classifier's

A network has few biases beside its weights, so that little data do not overfit them. Biases are those of linears and
convolutions; where no layer has one, those of norms. Differs from the paper: Adam on a cosine for SGD in three stages, and the
best of several moments on held-out batches is kept, judged in stored precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitwright.coded import CodedModule
from bitwright.corrections.finish import Both
from bitwright.training.loop import Training, batches, checked, rate
from bitwright.training.optimizers import OPTIMIZERS
from bitwright.wiring import Wiring

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, CodedModule)


@dataclass(frozen=True)
class Biases:
    """`rate` of the optimizer, in the units of the biases."""

    rate: float = 1e-3
    training: Training = Training(steps=400)

    def refusal(self, model: nn.Module, wiring: Wiring) -> str | None:
        if biases(model, wiring.head):
            return None
        return "No layer of this model has a bias that could be tuned; leave bias tuning out of the recipe."

    def __call__(self, both: Both) -> tuple[Mapping[str, Tensor], str]:
        how, kept = self.training, biases(both.ours, both.wiring.head)
        moved = {name: b.detach().clone().requires_grad_() for name, b in kept.items()}
        optimizer = OPTIMIZERS[how.optimizer]([{"params": list(moved.values()), "lr": self.rate}])
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(how, step / max(how.steps, 1)))
        best, least, when = {n: b.detach().clone() for n, b in kept.items()}, both.judged({}), 0
        order = batches(len(both.batches), how)
        for step in range(1, how.steps + 1):
            with torch.enable_grad():
                optimizer.zero_grad(set_to_none=True)
                both.apart(both.batches[order[step - 1]], moved).backward()
            optimizer.step()
            rates.step()
            if checked(how, step) and ((judged := both.judged(moved)) < least or (how.keep == "last" and step == how.steps)):
                best, least, when = {n: b.detach().clone() for n, b in moved.items()}, judged, step
        return best, f"{sum(b.numel() for b in best.values())} biases trained {how.steps} steps, best at step {when}"


def biases(model: nn.Module, head: str) -> dict[str, Tensor]:
    """The biases that are tuned, by name: of linears and convolutions, of norms where there are no others."""
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, module in model.named_modules():
        bias = module._parameters.get("bias")
        if bias is not None and name != head:
            found[not isinstance(module, MATRICES)][f"{name}.bias"] = bias
    return found[0] or found[1]
