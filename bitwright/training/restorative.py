"""Restorative finetuning: a model is trained around its own quantized version before it is quantized again (PTQ1.61, arXiv
2502.13179, section "preprocessing"; card: ptq1-61).

    W' = W^ + (alpha / rank) B A,   W^: what a first run by the recipe decodes to;     min over A, B of the loss of the next token

so that what a row lost comes back where one bit per weight can hold it. This changes the function of the model: it is the one step
here that does not aim at the float model, and a report that went through it says so. It is no part of a recipe for that reason.
Differs from the paper: no dropout, as factors are trained inside the weight; the best judged factors are kept; the text is the
given one, where the paper has twenty thousand steps on RedPajama. Holds the whole model in fp32.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitwright.calibrate.data import Windows
from bitwright.calibrate.stats import Known
from bitwright.checkpoint import open_checkpoint, whole
from bitwright.coded import CodedLinear
from bitwright.errors import BadRequest
from bitwright.recipe import Recipe, Rule
from bitwright.report import Report
from bitwright.sites import Site
from bitwright.terms.base import Terms
from bitwright.terms.low_rank import LowRank
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject, Weights
from bitwright.training.scopes import Replaced, shares


@dataclass(frozen=True)
class Restorative:
    """`rank` directions per matrix; `left`: a rule's pattern of matrices that stay as the first run left them."""

    rank: int = 64
    alpha: float = 16.0
    rate: float = 1e-4
    left: str = "re:.*o_proj"
    held: float = 0.125
    training: Training = Training(steps=1000, warm=0.05)

    def compress(
        self,
        model: Any,
        recipe: Recipe,
        data: Windows,
        *,
        text: Windows | None = None,
        batch: int = 4,
        device: str = "cpu",
        **how: Any,
    ) -> tuple[nn.Module, Report]:
        """`bitwright.compress` of the restored model; the report says what was done before, as a note of its own."""
        import bitwright

        restored, note = self(model, recipe, data, text=text, batch=batch, device=device)
        found, report = bitwright.compress(restored, recipe, data, batch=batch, device=device, **how)
        report = replace(report, notes=(*report.notes, note))
        if how.get("out"):
            report.write(how["out"])
        return found, report

    def __call__(
        self, model: Any, recipe: Recipe, data: Windows, *, text: Windows | None = None, batch: int = 4, device: str = "cpu"
    ) -> tuple[nn.Module, str]:
        """The restored model, fp32 on the CPU, and one line about it. `text`: to train on (None: the calibration data)."""
        import bitwright
        from bitwright.job import choose_device

        coded, _ = bitwright.compress(model, replace(recipe, head=False), data, batch=batch, device=device)
        plain, where = deepcopy(whole(open_checkpoint(model))), choose_device(device)  # a copy: the model given stays as it is
        sites = {n: Site(n, plain.get_submodule(n)) for n, m in coded.named_modules() if isinstance(m, CodedLinear)}
        for name, site in sites.items():
            site.put(coded.get_submodule(name).weight.detach())  # type: ignore[arg-type]
        plain.to(where)
        moved = {name: site for name, site in sites.items() if not Rule(self.left).matches(name)}
        if not moved:
            raise BadRequest(f"{self.left!r} leaves nothing to restore; let it match fewer matrices.")
        rows = [ids.to(where) for ids in (text or data).ids.split(batch)]
        pairs = {n: Pair(s.matrix().clone(), self, seed) for seed, (n, s) in enumerate(moved.items())}
        subjects = {n: Subject(pair.W, pair.terms(), Known()) for n, pair in pairs.items()}

        def loss(weights: Weights, k: int) -> Tensor:
            tensors = {f"{n}.weight": moved[n].shaped(subjects[n].W + change) for n, change in weights.items()}
            logits = Replaced(plain, tensors)(rows[k], use_cache=False).logits[:, :-1]
            return nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[k][:, 1:].flatten())

        problem = Problem(subjects, loss, *shares(len(rows), self.held))
        found = train(problem, pairs, self.training)
        for name, site in moved.items():
            site.put(subjects[name].W + found[name][0].decode())
        return plain.cpu(), f"restored around a first run, which changes the model itself: {problem.notes[-1]}"


class Pair:
    """B A, nothing at first."""

    def __init__(self, W: Float[Tensor, "out inp"], how: Restorative, seed: int) -> None:
        self.W, self.rate, self.scale = W, how.rate, how.alpha / how.rank
        drawn = torch.rand(how.rank, W.shape[1], generator=torch.Generator().manual_seed(seed))
        self.A = ((2 * drawn - 1) / W.shape[1] ** 0.5).to(W.device).requires_grad_()
        self.B = torch.zeros(W.shape[0], how.rank, device=W.device, requires_grad=True)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.B, self.A], "lr": self.rate}]

    def weight(self) -> Float[Tensor, "out inp"]:
        return self.scale * (self.B @ self.A)

    def pull(self, done: float) -> Tensor | None:
        return None

    def settle(self, done: float) -> None:
        return None

    def terms(self) -> Terms:
        return (LowRank.of(self.scale * self.B.detach(), self.A.detach().clone(), torch.float32),)
