"""What the tests of graph formats share: models in native form, and how far two sets of logits are apart."""

import functools
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

import bitwright
from bitwright import zoo
from bitwright.export.base import Format, Opened, export
from bitwright.export.native import Native
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.progress import silent
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.nearest import Nearest


def recipe(grid: Any, group: int | str | None, **more: Any) -> Recipe:
    layout = Layout(None, None) if group == "tensor" else Layout(1, group)  # type: ignore[arg-type]
    return Recipe(grid, layout, Nearest(), name="graph", **more)


RECIPES = {
    "4 bits, groups of 32": recipe(Integer(16, True), 32),
    "4 bits, groups of 64, zeros": recipe(Integer(16), 64),
    "4 bits, groups of 128, zeros": recipe(Integer(16, scale=Float("bfloat16")), 128),
    "8 bits, channels": recipe(Integer(256, True), None),
}
CASES = {
    **RECIPES,
    "2 bits, zeros": recipe(Integer(4), 32),
    "9 levels": recipe(Integer(9, True), 16),
    "5 levels, zeros, few groups": recipe(Integer(5), 96),
    "8 bits, zeros, channels": recipe(Integer(256, scale=Float("float32")), None),
    "8 bits, zeros, groups": recipe(Integer(200), 32),
    "4 bits, tensor": recipe(Integer(16), "tensor"),
    "4 bits, symmetric tensor": recipe(Integer(15, True), "tensor"),
    "4 bits, odd groups": recipe(Integer(16), 8),
    "FP8, channels": recipe(Table("e4m3"), None),
    "FP8, groups": recipe(Table("e4m3", scale=Float("float32")), 32),
}
SITES = [
    f"model.layers.{i}.{part}"
    for i in range(2)
    for part in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
]
WIDE = {"hidden_size": 128, "intermediate_size": 96}  # of a model that has room for them


def mixed(by: int) -> Recipe:
    """Every case in one model of two blocks, one a matrix, moved on by some places."""
    turned = list(CASES.values())[by:] + list(CASES.values())[:by]
    return recipe(
        Integer(16), 32, rules=tuple(Rule(site, grid=r.grid, layout=r.layout) for site, r in zip(SITES, turned, strict=True))
    )


CASES_AND_MIXED = CASES | {"mixed": mixed(0), "mixed otherwise": mixed(5)}


@functools.cache
def made(model: str, name: str) -> Path:
    """A model compressed by one of the recipes, natively."""
    out = Path(tempfile.mkdtemp())
    bitwright.compress(model, CASES_AND_MIXED[name], out=out / "native")
    return out / "native"


def written(model: str, name: str, form: Format, out: Path) -> tuple[Opened, Opened]:
    """The native model and its export, which was read back and compared."""
    source = Native().open(made(model, name))
    export(source, form, out, silent)
    return source, form.open(out)


@functools.cache
def text() -> Tensor:
    """Two rows of prose in the tokens of zoo:lm."""
    words = AutoTokenizer.from_pretrained(zoo.path("lm"))(topics["lambda"] + topics["lists"] + topics["naming"])["input_ids"]
    return torch.tensor(words[:192]).view(2, -1)


def logits(directory: Path, ids: Tensor) -> Tensor:
    """As bitwright computes them."""
    with torch.no_grad():
        found: Tensor = bitwright.load(directory)(ids).logits
    return found


def apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Largest difference, and mean KL divergence."""
    p, q = torch.log_softmax(one.double(), -1), torch.log_softmax(other.double(), -1)
    return float((one - other).abs().max()), float((p.exp() * (p - q)).sum(-1).mean())
