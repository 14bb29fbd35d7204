"""What the commands measure: a model's behaviour, alone or beside the one it was made from, and its speed."""

import tempfile
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from bitwright import console, page
from bitwright.calibrate.data import Windows
from bitwright.calibrate.drawn import drawn
from bitwright.calibrate.gradients import GRADIENTS
from bitwright.calibrate.images import Images
from bitwright.calibrate.text import text_windows
from bitwright.checkpoint import locate
from bitwright.evaluation import Baseline, Evaluation, ImageBaseline, evaluate, evaluate_images
from bitwright.evaluation.speed import speeds
from bitwright.export.base import open_compressed
from bitwright.job import choose_device, compress
from bitwright.loading import load
from bitwright.menus import measured
from bitwright.narrow import open_as
from bitwright.page import front
from bitwright.progress import Progress
from bitwright.recipe import Recipe
from bitwright.report import Report, Row


def measure(
    model: str, against: str | None, data: str, samples: int | None, length: int, size: str | None = None, bits: int | None = None
) -> Evaluation:
    if size is not None or bits is not None:
        open_as(locate(model), size, bits)  # what cannot be loaded is refused before the work
    rows = drawn(against or model, data, samples, length, "evaluation")
    with console.progress() as bar:
        base = baseline(against, rows, bar) if against else None
        return judged(load(locate(model), size=size, bits=bits), base or against or model, rows, bar)


def baseline(model: str, rows: Windows | Images, progress: Progress) -> Baseline | ImageBaseline:
    """One pass of the original over what it is judged on."""
    if isinstance(rows, Images):
        return ImageBaseline.of(load(locate(model)), rows, progress=progress)
    return Baseline.of(load(locate(model)), rows, AutoTokenizer.from_pretrained(locate(model)), progress=progress)


def judged(model: nn.Module, base: Baseline | ImageBaseline | str, rows: Windows | Images, progress: Progress) -> Evaluation:
    """A model beside its original; where there is only a name, by itself, with the tokenizer of that name."""
    if isinstance(rows, Images):
        return evaluate_images(model, base if isinstance(base, ImageBaseline) else None, rows, progress=progress)
    if isinstance(base, Baseline):
        return evaluate(model, base, progress=progress)
    return evaluate(model, None, rows, AutoTokenizer.from_pretrained(locate(str(base))), progress=progress)


def measure_speed(model: str, against: str | None, device: str) -> dict[str, dict[str, Any]]:
    """By model: what `Speed` holds. In bf16 on a GPU, in fp32 on the CPU."""
    names, where = [name for name in (against, model) if name is not None], choose_device(device)
    prompt = text_windows(names[0], "stdlib", 1, 128, "evaluation").ids.to(where)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    with console.progress() as bar:
        found = speeds([load(locate(name), dtype).to(where) for name in names], prompt, progress=bar)
    return {name: speed.to_json() for name, speed in zip(names, found)}


def compared(
    model: str, chosen: dict[str, Recipe], also: list[Path], out: Path, data: str, samples: int, length: int, overwrite: bool
) -> list[Report]:
    """A report with scores for every recipe, compressed into a directory below `out`, and for every model that is there already.
    Recipes that work from stored statistics share one store, so what a choice loses is measured once for all budgets."""
    for path in also:
        open_compressed(path)  # what cannot be read is refused before the work
    rows = drawn(model, data, samples, length, "calibration") if chosen else None
    judge = drawn(model, data, None, length, "evaluation")
    reports = []
    with console.progress() as bar, tempfile.TemporaryDirectory() as folder:
        base = baseline(model, judge, bar)
        for name, recipe in chosen.items():
            from_store = measured(recipe) or set(recipe.needs) & set(GRADIENTS)  # others are rounded behind what is rounded already
            stats = Path(folder) if from_store else None
            small, report = compress(model, recipe, rows, out=out / name, stats=stats, overwrite=overwrite, progress=bar)
            report = report.with_scores(judged(small, base, judge, bar).to_json())
            report.write(out / name)
            (out / name / "report.html").write_text(page.render(report))
            reports.append(report)
        for path in also:
            reports.append(as_it_lies(path).with_scores(judged(load(locate(str(path))), base, judge, bar).to_json()))
    out.mkdir(parents=True, exist_ok=True)
    front.write(reports, out)
    return reports


def as_it_lies(root: Path) -> Report:
    """The report of a compressed model, or for one of another tool what its files say: bits, no errors."""
    opened = open_compressed(root)
    if opened.document:
        return Report.read(root)
    sizes = dict.fromkeys(opened.model.metas, 0)
    for entry in opened.entries:
        if entry.site:
            sizes[entry.site] += 8 * entry.bytes
    shapes = {name: tuple(metas[0]["shape"]) for name, metas in opened.model.metas.items()}
    rows = tuple(
        Row(name, None, shapes[name], bits, 0.0, 0.0, "not measured", 0.0, tuple(meta["kind"] for meta in opened.model.metas[name]))
        for name, bits in sizes.items()
    )
    kept = sum(entry.bytes for entry in opened.entries if not entry.site)
    weights = sum(prod(shape) for shape in shapes.values()) + sum(prod(shape) for shape, _ in opened.model.kept.values())
    asked = {"model": str(root), "recipe": {"name": root.name}, "calibration": None, "inputs": "not known"}
    return Report(asked, rows, kept, 2 * weights, weights, 0.0, 0, {})
