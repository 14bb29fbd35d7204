"""The plan: what a recipe will do to a model, decided before a weight is read. It is the dry run, and the run follows it.

For each site: the bands that will code it and the metas of its terms, hence its exact bytes. A layout that does not tile a
matrix is replaced by the nearest that does, and the extra bits are listed; `strict` refuses instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from bitwright.activations.base import Activation
from bitwright.checkpoint import Checkpoint, skeleton
from bitwright.coder import Band, metas
from bitwright.errors import BadRequest
from bitwright.export.base import Format
from bitwright.export.native import Native
from bitwright.recipe import Recipe
from bitwright.rounding.nearest import Nearest
from bitwright.sites import Site, sites
from bitwright.terms.base import stored_bits
from bitwright.training.problem import untrainable
from bitwright.wiring import Wiring

LIBRARIES = 450 * 2**20  # resident size of Python with torch, transformers and numba loaded


@dataclass(frozen=True)
class Planned:
    """One site: the recipe that applies to it, its bands, the metas of its terms in advance, and what is unusual about it."""

    shape: tuple[int, int]
    recipe: Recipe
    bands: tuple[Band, ...]
    metas: tuple[Mapping[str, Any], ...]
    bits: int  # stored, in the format that will be written
    note: str | None = None
    inputs: Activation | None = None


@dataclass(frozen=True)
class Plan:
    """Sites by name in the order of the walk; tensors that stay as they are; sizes."""

    recipe: Recipe
    wiring: Wiring
    sites: Mapping[str, Planned]
    kept: Mapping[str, int]  # bytes of every tensor that is stored as it is
    blocks: int
    tied: bool  # the output head reads the embedding
    block_bytes: int  # the largest block in fp32
    widths: int  # numbers one token keeps alive in a block

    @property
    def inputs(self) -> dict[str, Activation]:
        """How the inputs of the sites are quantized, where they are."""
        return {name: p.inputs for name, p in self.sites.items() if p.inputs is not None}

    @property
    def bytes(self) -> int:
        """Of all tensors that will be written."""
        return sum(p.bits for p in self.sites.values()) // 8 + sum(self.kept.values())

    @property
    def tied_head(self) -> str | None:
        """The output head, where it reads the compressed embedding."""
        return self.wiring.head if self.tied and self.wiring.embed[0] in self.sites else None

    def within(self, size: int) -> Recipe:
        """The recipe with the budget that makes all tensors together fit into `size` bytes."""
        weights = sum(p.shape[0] * p.shape[1] for p in self.sites.values())
        left = 8 * (size - sum(self.kept.values())) / weights
        if left <= 1:
            raise BadRequest(
                f"{size:,} bytes are too few: what is kept as it is takes {sum(self.kept.values()):,} of them; "
                "raise the size or add --head."
            )
        return replace(self.recipe, budget=left)

    def peak(self, tokens: int) -> int:
        """Estimated peak resident bytes: libraries, one block in fp32, the activations of all rows in one block, moments."""
        moments = 3 * 4 * max((p.shape[1] ** 2 for p in self.sites.values()), default=0)
        return LIBRARIES + 2 * self.block_bytes + self.paused(tokens) + moments

    def paused(self, tokens: int) -> int:
        """Bytes of what all rows hold while they wait inside a block."""
        return 4 * tokens * self.widths


def plan(source: Checkpoint, wiring: Wiring, recipe: Recipe, strict: bool = False, form: Format = Native()) -> Plan:
    """Decide everything that can be decided without reading a weight; sizes are those of the format that will be written.
    Raises BadRequest with cause and remedy."""
    model = skeleton(source.config)
    blocks = wiring.block_list(model)
    named = inside(model, wiring)
    tied = bool(getattr(source.config, "tie_word_embeddings", False))
    planned = {n: p for n, s in named.items() if (p := plan_site(n, s, recipe.of(n), strict, form)) is not None}
    if recipe.head:
        outer = heads(model, wiring, recipe, tied)
        planned |= {n: p for n, (s, own) in outer.items() if (p := plan_site(n, s, own, strict, form)) is not None}
    outside = (wiring.head, *wiring.embed, *(n for part in wiring.embed for n in sites(model.get_submodule(part), f"{part}.")))
    if unused := [
        r.match for r in recipe.rules if not any(map(r.matches, (*named, *(outside if r.ignore or recipe.head else ()))))
    ]:
        raise BadRequest(
            f"The rule {unused[0]!r} matches no layer; names look like {next(iter(named))!r}, regular expressions start with re:."
        )
    if not planned:
        raise BadRequest("The rules leave nothing to compress; ignore less.")
    if whys := [why for step in recipe.after if (why := step.refusal(model, wiring)) is not None]:
        raise BadRequest(whys[0])
    coded = {f"{name}.weight" for name in planned}
    check(source, model, wiring, tied)
    kept = {n: form.kept_bytes(n, (s, source.dtypes[n])) for n, s in source.shapes.items() if n not in coded}
    sizes = [4 * sum(x.numel() for x in (*block.parameters(), *block.buffers())) for block in blocks]
    widths = max(sum(s.shape[0] + s.shape[1] for s in sites(block).values()) for block in blocks)
    return Plan(recipe, wiring, planned, kept, len(blocks), tied, max(sizes), widths)


def check(source: Checkpoint, model: nn.Module, wiring: Wiring, tied: bool) -> None:
    """Every parameter of the model is in the files, in its shape. Raises BadRequest with the first that is not."""
    for name, parameter in model.named_parameters():
        if tied and name == f"{wiring.head}.weight":
            continue
        if name not in source.shapes:
            raise BadRequest(f"The model lacks the tensor {name}; its files and its config.json disagree, download it again.")
        if source.shapes[name] != tuple(parameter.shape):
            told, wanted = source.shapes[name], tuple(parameter.shape)
            raise BadRequest(f"{name} is {told} in the files but {wanted} by config.json; download the model again.")


def plan_site(name: str, site: Site, recipe: Recipe | None, strict: bool, form: Format) -> Planned | None:
    if recipe is None:
        return None
    shape, layout, note = site.shape, recipe.layout, None
    if not layout.fits(shape):
        layout = layout.nearest(shape)
        wanted, got = recipe.layout.block(shape), layout.block(shape)
        if strict:
            raise BadRequest(
                f"{name} is {shape[0]} x {shape[1]}, which blocks of {wanted[0]} x {wanted[1]} do not tile; "
                f"choose a group that divides it, such as {got[1]}, or run without --strict."
            )
        note = f"blocks of {wanted[0]} x {wanted[1]} do not tile {shape[0]} x {shape[1]}; {got[0]} x {got[1]} instead"
    band = Band(recipe.grid, layout)
    if why := band.legal(shape):
        raise BadRequest(f"{name} cannot take this recipe: {why}; choose another group or grid.")
    found = recipe.alone.metas(shape, (band,))
    if recipe.joint and (why := untrainable(found, shape[1])):
        raise BadRequest(f"{name} cannot take this recipe: {why}; start it from another rounding.")
    if note:
        even = stored_bits(metas(shape, (band,))) - shape[0] * shape[1] * stored_rate(recipe)
        note += f", {even / (shape[0] * shape[1]):+.2f} bits per weight"
    for correction in recipe.corrections:
        found += tuple(correction.metas(shape))
    inputs = recipe.activations
    if inputs is not None and (why := inputs.refusal(shape[1])):
        raise BadRequest(f"{name} cannot have its inputs quantized so: {why}; choose another group.")
    return Planned(shape, recipe, (band,), found, form.bits(name, found, inputs), note, inputs)


def stored_rate(recipe: Recipe) -> float:
    """Bits per weight on a matrix that the recipe's layout tiles."""
    spans = [leaf.shared for leaf in recipe.grid.leaves.values() if isinstance(leaf.shared, int)]
    shape = (2 * (recipe.layout.rows or 256), 2 * (recipe.layout.cols or 4096) * max(spans, default=1))
    return stored_bits(metas(shape, (Band(recipe.grid, recipe.layout),))) / prod(shape)


def inside(model: Any, wiring: Wiring) -> dict[str, Site]:
    """All sites in the blocks of a model, in the order of the walk."""
    blocks = wiring.block_list(model)
    return {name: s for i in range(len(blocks)) for name, s in sites(blocks[i], f"{wiring.blocks}.{i}.").items()}


def heads(model: nn.Module, wiring: Wiring, recipe: Recipe, tied: bool) -> dict[str, tuple[Site, Recipe | None]]:
    """What embeds, and the output head where it has a matrix of its own; each with the recipe that applies to it."""
    found = {}
    for part in (*wiring.embed, *(() if tied else (wiring.head,))):
        for name, site in sites(model.get_submodule(part), f"{part}.").items():
            chosen = recipe.of(name)
            if chosen is not None:
                chosen = replace(chosen, activations=None)
                chosen = chosen if name == wiring.head else replace(chosen, rounding=Nearest(), corrections=())
            found[name] = site, chosen
    return found
