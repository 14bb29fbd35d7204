"""One matrix by its recipe, from the weights to what is stored of them and what that loses. What a run and a probe have in common.

A result can be kept on disk under a name that says all it depends on: recipe, statistics, second level. Equal requests, in another
run or under another budget, are then answered from there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

import bitwright
from bitwright import index
from bitwright.calibrate.stats import Known
from bitwright.coder import Coder
from bitwright.errors import in_place_of
from bitwright.grids.base import Params
from bitwright.linalg import pull
from bitwright.plan import Planned
from bitwright.rounding.nearest import Nearest
from bitwright.saving import save_file
from bitwright.terms import base
from bitwright.terms.base import Terms, decode


@dataclass(frozen=True, eq=False)
class Solved:
    """The terms of a matrix. `errors`: squared error of every output, per token where inputs are known, else of its weights;
    `nearest`: the sum of the same for nearest rounding on the same grid; `energy`: for no weights at all."""

    terms: Terms
    errors: Float[Tensor, "out"]
    nearest: float
    energy: float
    notes: tuple[str, ...]

    @classmethod
    def of(cls, W: Float[Tensor, "out inp"], planned: Planned, known: Known, top: Params | None = None) -> "Solved":
        """Round, correct, and judge what is stored."""
        known = Known(known.values, list(known.notes), known.derived)
        terms, plain = compress_matrix(W, planned, known, top)
        H = known.values.get("gram")
        errors, nearest, energy = (lost(E, H) for E in (W - decode(terms), W - decode(plain), W))
        return cls(terms, errors.float(), float(nearest.sum()), float(energy.sum()), tuple(known.notes))

    def write(self, path: Path) -> None:
        told = {"metas": [t.meta() for t in self.terms], "nearest": self.nearest, "energy": self.energy, "notes": self.notes}
        tensors = {f"{i}.{leaf}": t.contiguous().cpu() for i, term in enumerate(self.terms) for leaf, t in term.tensors().items()}
        with in_place_of(path) as partial:
            save_file({**tensors, "errors": self.errors.cpu()}, partial, metadata={"told": json.dumps(told)})

    @classmethod
    def read(cls, path: Path) -> "Solved | None":
        """None where there is none."""
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["told"])
            stored = [{leaf: file.get_tensor(f"{i}.{leaf}") for leaf in base.spec(meta)} for i, meta in enumerate(told["metas"])]
            errors = file.get_tensor("errors")
        terms = tuple(base.load(meta, leaves) for meta, leaves in zip(told["metas"], stored))
        return cls(terms, errors, told["nearest"], told["energy"], tuple(told["notes"]))


def key(name: str, planned: Planned, needs: Sequence[str], top: Params | None) -> str:
    """What a result depends on, beyond the model and the data that the store is of."""
    recipe: Any = planned.recipe
    parts = [index.to_dict(part) for part in (recipe.grid, recipe.layout, recipe.alone, recipe.corrections)]
    tops: Mapping[str, Any] = {leaf: t.float().flatten().tolist() for leaf, t in (top or {}).items()}
    told = json.dumps([name, parts, list(planned.metas), sorted(needs), tops, bitwright.__version__], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def compress_matrix(W: Float[Tensor, "out inp"], planned: Planned, known: Known, top: Params | None = None) -> tuple[Terms, Terms]:
    """All terms of a matrix by its recipe, under a second level that others share, and those of plain nearest rounding."""
    recipe = planned.recipe
    out = tuple(t for c in recipe.corrections if c.before for t in c(W, known))
    rest = W - decode(out) if out else W
    coder = Coder.fit(rest, planned.bands, price(known, recipe.grid.needs), top)
    terms = recipe.alone(rest, coder, known)
    plain = (*Nearest()(rest, coder, known), *out)
    error = rest - decode(terms)
    after = tuple(t for c in recipe.corrections if not c.before for t in c(error, known))
    return (*terms, *out, *after), plain


def price(known: Known, needs: Sequence[str]) -> Float[Tensor, "*out inp"] | None:
    """What a squared error costs at each weight (`fisher`) or at each input (`gram`), by what a grid's fit asks for."""
    if "fisher" in needs and "fisher" in known.values:
        return known["fisher"]
    if "fisher" in needs:
        known.note("no gradients are known here: the grid weighs errors by the second moments of the inputs, if by anything")
    H = known.values.get("gram")
    return None if H is None else H.diagonal().clamp_min(0)


def lost(E: Float[Tensor, "out inp"], H: Float[Tensor, "inp inp"] | None) -> Float[Tensor, "out"]:
    """(E H E^T)_ii, or squares where nothing is known of the inputs; summed in fp64."""
    return ((E if H is None else pull(E, H)) * E).sum(1, dtype=torch.float64)


def lost_by_prefixes(W: Float[Tensor, "out inp"], terms: Terms, H: Float[Tensor, "inp inp"] | None) -> list[float]:
    """What the first term leaves, the first two, ... all."""
    found, rest = [], W
    for term in terms:
        rest = rest - term.decode()
        found.append(float(lost(rest, H).sum()))
    return found
