"""Claim: one file of zoo:lm serves 8, 6, 4, 3 and 2 bits, each within 10 % of the KL of a model that GPTQ made for it alone.

    python bench/nested_widths.py [--samples 32]

Ways to nest, all in groups of 64, statistics of the float model, the same calibration and evaluation text:
    shared      the paper's second rounding of GPTQ's 8-bit codes: to nearest, under one scale
    scales      the same under a scale and a zero of every width's own
    turns       the recipe double-rounding: one stored bit per weight and width says which neighbour
    children    2-bit codes by GPTQ first, then each width by GPTQ among the children of the codes before (any-precision order)
    clusters    Any-Precision LLM: per row four weighted clusters, each split in two again and again, nothing but nearest
    alone       a model for the width only
KL is that of whole models; `bits` are stored bits per weight of the file from which all widths come (alone: of all five files).
JSON goes to bench/results/.
"""

import argparse
import copy
import datetime
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bitwright
from bitwright import recipes
from bitwright.calibrate.stats import Gram, Known
from bitwright.calibrate.text import text_windows
from bitwright.coder import Band, Coder
from bitwright.evaluation import Baseline, evaluate
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.narrow import lowered
from bitwright.recipe import Recipe
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import Terms, decode, stored_bits

WIDTHS, GROUPS = (8, 6, 4, 3, 2), Layout(1, 64)
Made = tuple[dict[int, Tensor], int]  # the matrix at every width, and stored bits


def rounded(recipe: Recipe, W: Tensor, known: Known) -> Terms:
    return recipe.rounding(W, Coder.fit(W, [Band(recipe.grid, GROUPS)]), known)


def by_recipe(paper: bool, keep: bool = True) -> Callable[[Tensor, Known], Made]:
    """The recipe; without its turns where they are not kept."""

    def make(W: Tensor, known: Known) -> Made:
        terms = rounded(recipes.double_rounding(paper=paper), W, known)
        terms = terms if keep else terms[:1]
        return {bits: decode(lowered(terms, bits)) for bits in WIDTHS}, stored_bits(terms)

    return make


def alone(W: Tensor, known: Known) -> Made:
    found = {bits: rounded(Recipe(Integer(2**bits, by=Mse()), GROUPS, GPTQ()), W, known) for bits in WIDTHS}
    return {bits: decode(terms) for bits, terms in found.items()}, sum(map(stored_bits, found.values()))


def children(W: Tensor, known: Known) -> Made:
    made, codes, before = {}, torch.zeros_like(W), 0
    for bits in WIDTHS[::-1]:
        grid = Integer(2**bits, by=Mse())
        (p,) = Coder.fit(W, [Band(grid, GROUPS)]).params
        scale, zero = (leaf.view(len(W), -1).repeat_interleave(64, 1) for leaf in grid.affine(p))
        fan, first = 2 ** (bits - before), codes * 2 ** (bits - before)
        points = {"scale": scale.reshape(-1, 1), "zero": (zero - first).reshape(-1, 1)}
        (term,) = GPTQ()(W, Coder((W.shape[0], W.shape[1]), (Band(Integer(fan), Layout(1, 1)),), (points,)), known)
        made[bits], codes, before = term.decode(), first + term.codes, bits
    return made, 8 * W.numel() + W.numel() // 64 * sum(16 + bits for bits in WIDTHS)


def clusters(W: Tensor, known: Known) -> Made:
    price, label, made = known.gram.diagonal().expand_as(W).clamp_min(1e-12), torch.zeros_like(W, dtype=torch.long), {}

    def centres(label: Tensor, count: int) -> Tensor:
        up, down = (torch.zeros(len(W), count).scatter_add_(1, label, x) for x in (W * price, price))
        return torch.where(down > 0, up / down.clamp_min(1e-30), torch.nan)

    for bits in range(1, 9):
        inner = label
        label = 2 * inner + (centres(inner, 2 ** (bits - 1)).gather(1, inner) < W).long()
        for _ in range(20):
            pairs = centres(label, 2**bits).view(len(W), -1, 2).mean(2).gather(1, inner)
            label = torch.where(pairs.isnan(), label, 2 * inner + (pairs < W).long())
        if bits == 2:  # the first four are placed freely
            for _ in range(30):
                centre = centres(label, 4).nan_to_num(0.0).sort(1).values
                label = torch.searchsorted((centre[:, 1:] + centre[:, :-1]) / 2, W)
        if bits in WIDTHS:
            made[bits] = centres(label, 2**bits).half().float().gather(1, label)
    return made, 8 * W.numel() + 16 * len(W) * sum(2**bits for bits in WIDTHS)


WAYS = {
    "alone": alone,
    "shared": by_recipe(paper=True),
    "scales": by_recipe(paper=False, keep=False),
    "turns": by_recipe(paper=False),
    "children": children,
    "clusters": clusters,
}


def grams(model: nn.Module, ids: Tensor) -> dict[str, Gram]:
    found = {name: Gram(m.in_features) for name, m in model.model.layers.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        model.model.layers.get_submodule(name).register_forward_pre_hook(lambda _, x, gram=gram: gram.add(x[0].flatten(0, -2)))
        for name, gram in found.items()
    ]
    with torch.no_grad():
        for rows in ids.split(4):
            model(rows)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=32)
    samples = parser.parse_args().samples
    model = bitwright.load("zoo:lm")
    base = Baseline.of(model, text_windows("zoo:lm", "stdlib", samples, 512, "evaluation"))
    stats = {
        name: Known({"gram": gram.value()})
        for name, gram in grams(model, bitwright.calibration("zoo:lm", samples=samples).ids).items()
    }
    weights = sum(model.model.layers.get_submodule(name).weight.numel() for name in stats)
    rows = []
    for way, make in WAYS.items():
        found = {name: make(model.model.layers.get_submodule(name).weight.detach().float(), known) for name, known in stats.items()}
        row = {"way": way, "bits": sum(bits for _, bits in found.values()) / weights, "kl": {}}
        for bits in WIDTHS:
            small = copy.deepcopy(model)
            for name, (made, _) in found.items():
                small.model.layers.get_submodule(name).weight.data = made[bits]
            row["kl"][bits] = evaluate(small, base).divergence.kl.value
        rows.append(row)
        told = "  ".join(f"{b}: {kl:.3g} ({kl / rows[0]['kl'][b]:.2f} of alone)" for b, kl in row["kl"].items())
        print(f"{way:9} {row['bits']:5.2f} bits per weight   {told}", flush=True)
    date = datetime.date.today().isoformat()
    result = {"date": date, "model": "zoo:lm", "group": 64, "calibration": f"{samples} x 512 stdlib", "rows": rows}
    (Path(__file__).parent / "results" / f"nested_widths-{date}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
