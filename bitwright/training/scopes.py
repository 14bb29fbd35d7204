"""Scopes: what the loss of a joint rounding is a function of, and the problem made of it.

    block    the squared error of one block's outputs, per token. Inputs: the rows as they come out of the compressed blocks before
             ("compressed"), out of the float ones ("float"), or a number of each with equal chance ("mixed": QDrop, 2203.05740).
             Targets: the float block on the float rows ("float"), so that it also mends what came before, on its own inputs
             ("same"), or the sum of both losses ("both"). Instead of the squared error 1 - cos ("cosine"), or the squared error per
             feature - log |cos| ("angular": PTQ1.61, 2502.13179), angles of whole tokens. `online`: the inputs of the matrices are
             quantized meanwhile, as the recipe does it at run time.
    layer    the squared error of one matrix's outputs, as a share of their energy, on the inputs that it meets behind the matrices
             before it in the block, which are trained already. Its target is the float matrix on the same inputs, so that it mends
             nothing that came before. `online` as above.
    model    KL(float || compressed) of the logits, per token. Holds the whole model in fp32. A share `ambiguous` of it is weighed
             by (H(float) + H(compressed))^gamma, entropies of the token's distributions, of mean one over a batch, without
             gradients: tokens that neither model is sure of count more (DB-LLM, 2402.11960, constants not public; card: db-llm).

The last `held` share of the batches is for judging. Scope "one matrix" is rounding/layerwise.py. Cards: flexround, lrq, pv-tuning.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from bitwright.calibrate.stream import Rows, prefix_of, run
from bitwright.errors import BadRequest
from bitwright.sites import Site
from bitwright.training.inputs import Inputs
from bitwright.training.problem import Problem, Subject, Weights

Online = Mapping[str, Inputs]


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the road stands: block `number`, its matrices, the rows of both lanes as they enter it (`before`), what the float block
    makes of the float rows (`after`), and what quantizes the inputs of its matrices while the model runs (`online`)."""

    block: nn.Module
    number: int
    sites: Mapping[str, Site]
    before: Sequence[Rows]
    after: Sequence[Tensor]
    online: Online


@runtime_checkable
class Scope(Protocol):
    @property
    def held(self) -> float:
        """Share of the batches that is never trained on."""


@dataclass(frozen=True)
class Block:
    inputs: Literal["compressed", "float", "mixed"] = "compressed"
    targets: Literal["float", "same", "both"] = "float"
    loss: Literal["squared", "cosine", "angular"] = "squared"
    online: bool = False
    held: float = 0.125

    def problems(self, at: Standing, subjects: Mapping[str, Subject]) -> Iterator[Problem]:
        """One: of all matrices together."""
        names, dice = named(at.block, at.sites), torch.Generator().manual_seed(0)
        float_weights = {name: s.W for name, s in subjects.items()}
        quantizers = at.online if self.online else {}

        def out(weights: Weights, x: Tensor, k: int) -> Tensor:
            return run(Replaced(at.block, shaped(at.sites, names, weights)), x, at.before[k].calls[at.number])

        def entering(k: int) -> Tensor:
            ours, theirs = at.before[k].hidden, at.before[k].teacher
            assert theirs is not None
            if self.inputs == "mixed":
                return torch.where(torch.rand(ours.shape, generator=dice).to(ours.device) < 0.5, ours, theirs)
            return ours if self.inputs == "compressed" else theirs

        goals = [] if self.targets == "same" else [at.after]
        if self.targets != "float":
            with torch.no_grad():
                lane = [r.teacher if self.inputs == "float" else r.hidden for r in at.before]
                goals.append([out(float_weights, x, k) for k, x in enumerate(lane) if x is not None])

        def loss(weights: Weights, k: int) -> Tensor:
            with quantized(at.sites, quantizers):
                found = out(weights, entering(k), k)
            return torch.stack([self.apart(found, goal[k]) for goal in goals]).sum()

        yield Problem(subjects, loss, *shares(len(at.before), self.held), inputs=quantizers)

    def apart(self, found: Float[Tensor, "*t d"], goal: Float[Tensor, "*t d"]) -> Float[Tensor, ""]:
        squared = (found - goal).square()
        if self.loss == "squared":
            return squared.sum(-1).mean()
        cosine = nn.functional.cosine_similarity(found, goal, dim=-1)
        return 1 - cosine.mean() if self.loss == "cosine" else squared.mean() - cosine.abs().clamp_min(1e-6).log().mean()


@dataclass(frozen=True)
class Layer:
    online: bool = False
    held: float = 0.125

    def problems(self, at: Standing, subjects: Mapping[str, Subject]) -> Iterator[Problem]:
        """One for every matrix. The block holds what is stored so far, and what was found for one before the next is asked for."""
        quantizers = at.online if self.online else {}
        for name, site in at.sites.items():
            with torch.no_grad(), quantized(at.sites, {n: q for n, q in quantizers.items() if n != name}):
                seen = [entered(site.module, at.block, r, at.number) for r in at.before]
            own = {name: quantizers[name]} if name in quantizers else {}
            yield Problem({name: subjects[name]}, alone(site, subjects[name], seen, own), *shares(len(seen), self.held), inputs=own)


def alone(site: Site, subject: Subject, seen: Sequence[Tensor], own: Online) -> Callable[[Weights, int], Tensor]:
    """The loss of one matrix on its inputs."""

    def output(W: Tensor, x: Tensor) -> Tensor:
        found: Tensor = Replaced(site.module, {"weight": site.shaped(W)})(x)
        return found

    with torch.no_grad():
        goals = [output(subject.W, x) for x in seen]
        nothing = output(torch.zeros_like(subject.W), seen[0][:1])  # the bias
        energy = torch.stack([(goal - nothing).square().mean() for goal in goals]).mean().clamp_min(1e-12)

    def loss(weights: Weights, k: int) -> Tensor:
        (W,) = weights.values()
        x = own[site.name](seen[k]) if own else seen[k]
        return (output(W, x) - goals[k]).square().mean() / energy

    return loss


def entered(module: nn.Module, block: nn.Module, rows: Rows, number: int) -> Tensor:
    """What a module of a block is called on."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    try:
        run(block, rows.hidden, rows.calls[number])
    finally:
        handle.remove()
    return found[0]


@dataclass(frozen=True)
class Model:
    ambiguous: float = 0.0
    gamma: float = 1.0
    held: float = 0.125

    def problem(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        batches: Sequence[Tensor],
        call: Mapping[str, Any],
        subjects: Mapping[str, Subject],
    ) -> Problem:
        """`model` holds the float weights and gives `logits`; it is called on `batches` with the keyword arguments `call`."""
        names = {name: f"{name}.weight" for name in sites}

        def loss(weights: Weights, k: int) -> Tensor:
            with torch.no_grad():
                teacher = model(batches[k], **call).logits.float().log_softmax(-1)
            student = Replaced(model, shaped(sites, names, weights))(batches[k], **call).logits.float().log_softmax(-1)
            lost = (teacher.exp() * (teacher - student)).sum(-1)
            return (lost * self.price(teacher, student.detach())).mean() if self.ambiguous else lost.mean()

        return Problem(subjects, loss, *shares(len(batches), self.held))

    def price(self, teacher: Float[Tensor, "*t v"], student: Float[Tensor, "*t v"]) -> Float[Tensor, "*t"]:
        """Of every token, one on the average; both are logarithms of probabilities."""
        doubt = (entropy(teacher) + entropy(student)) ** self.gamma
        return 1 - self.ambiguous + self.ambiguous * doubt / doubt.mean().clamp_min(1e-9)


@dataclass(frozen=True, eq=False)
class Replaced:
    """A module called with other weights than its own."""

    module: nn.Module
    weights: Mapping[str, Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.module, dict(self.weights), args, kwargs)


def named(block: nn.Module, sites: Mapping[str, Site]) -> dict[str, str]:
    prefix = prefix_of(sites, block)
    return {name: f"{name.removeprefix(prefix)}.weight" for name in sites}


def shaped(sites: Mapping[str, Site], names: Mapping[str, str], weights: Weights) -> dict[str, Tensor]:
    return {names[name]: sites[name].shaped(W) for name, W in weights.items()}


def shares(count: int, held: float) -> tuple[int, int]:
    """Batches to train on, and to judge by. Raises BadRequest where there are too few for both."""
    judged = ceil(held * count)
    if count - judged < 1:
        raise BadRequest(f"What is trained needs two batches of calibration rows or more, not {count}; give more --samples.")
    return count - judged, judged


def entropy(log_p: Float[Tensor, "*t v"]) -> Float[Tensor, "*t"]:
    return -(log_p.exp() * log_p).sum(-1).clamp_max(0)


@contextmanager
def quantized(sites: Mapping[str, Site], online: Online) -> Iterator[None]:
    """The inputs of these matrices quantized, with the gradient straight through."""

    def hook(quantize: Inputs) -> Any:
        return lambda module, args: (quantize(args[0]), *args[1:])

    handles = [sites[name].module.register_forward_pre_hook(hook(told)) for name, told in online.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
