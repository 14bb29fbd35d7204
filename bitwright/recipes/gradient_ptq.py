"""gradient-ptq: arXiv 2308.07662, a study of gradient-based rounding by one choice at a time; the choices are options here:

    variable    up or down through a sigmoid (AdaRound), a divisor per weight (FlexRound), the weight itself (straight through)
    optimizer   adam, sgd, adamax, sign;      scope: block, model;      inputs: compressed, float, mixed (QDrop)
    loss        squared, cosine (of a block; a model has the KL of its logits)
    grid        integer, nf4 (non-uniform; four bits)

and importance-based mixed precision: every unit takes `menu` bits under a `budget` of stored bits per weight, by the loss that
gradients foretell. Ours, as only the abstract is public: the score (half the output gradient's second moment times the error, in
nats), the exact optimum instead of a ranking, the rates, and all defaults; the card's harness is AdaRound block by block. Without a
budget all have `bits`. Card: gradient-ptq."""

from dataclasses import replace
from typing import Any

from bitwright.allocation.integer_program import IntegerProgram
from bitwright.allocation.probes import Fisher
from bitwright.errors import BadRequest
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.recipe import Recipe, Rule
from bitwright.recipes.trained import trained
from bitwright.rounding.adaround import AdaRound
from bitwright.rounding.flexround import FlexRound
from bitwright.rounding.straight_through import StraightThrough
from bitwright.training.loop import Training
from bitwright.training.scopes import Block, Model

AXES = {
    "variable": ("sigmoid", "divisor", "weight"),
    "optimizer": ("adam", "sgd", "adamax", "sign"),
    "inputs": ("compressed", "float", "mixed"),
    "loss": ("squared", "cosine"),
    "scope": ("block", "model"),
    "grid": ("integer", "nf4"),
}
MENU = (3, 4, 8)
RATES = {"sigmoid": 3e-2, "divisor": 1e-3, "weight": 1e-2}  # of Adam


def gradient_ptq(
    bits: int = 4,
    group: int | None = None,
    budget: float | None = None,
    steps: int = 600,
    variable: str = "sigmoid",
    optimizer: str = "adam",
    inputs: str = "compressed",
    loss: str = "squared",
    scope: str = "block",
    grid: str = "integer",
    rate: float | None = None,
) -> Recipe:
    for (name, known), given in zip(AXES.items(), (variable, optimizer, inputs, loss, scope, grid)):
        if given not in known:
            raise BadRequest(f"gradient-ptq has no {name} {given!r}; choose one of {', '.join(known)}.")
    if grid == "nf4" and (budget is not None or bits != 4):
        raise BadRequest("nf4 has four bits and no others; leave out the budget and the bits, or take the integer grid.")
    rate = RATES[variable] if rate is None else rate
    how = Training(steps, optimizer, "constant" if variable == "sigmoid" else "cosine")  # type: ignore[arg-type]
    where: Any = Model() if scope == "model" else Block(inputs, loss=loss)  # type: ignore[arg-type]
    joint: Any = {
        "sigmoid": AdaRound(rate, scope=where, training=how),
        "divisor": FlexRound(rate, scope=where, training=how),
        "weight": StraightThrough(rate, rate, scope=where, training=how),
    }[variable]
    found = trained(joint, bits, group, steps, "gradient-ptq", Table("nf4", Mse()) if grid == "nf4" else None)
    if budget is None:
        return found
    menu = tuple(Rule("re:.*", grid=Integer(2**b, by=Mse())) for b in MENU)
    return replace(found, budget=budget, allocation=IntegerProgram(Fisher()), menu=menu)
