"""compress(): the public face of the road. Everything that can be refused is refused here, before the work begins."""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitwright
from bitwright import index
from bitwright.calibrate.base import Data
from bitwright.calibrate.collect import collect
from bitwright.calibrate.gradients import GRADIENTS
from bitwright.calibrate.store import Store
from bitwright.checkpoint import Checkpoint, open_checkpoint
from bitwright.convert import deliver
from bitwright.errors import BadRequest
from bitwright.export import native
from bitwright.export.base import Format, Model
from bitwright.export.configuration import configuration
from bitwright.export.hf import beside
from bitwright.export.native import Native
from bitwright.export.resumable import NATIVE, Directory, make_room
from bitwright.kernels.devices import available, memory_left
from bitwright.menus import by_price
from bitwright.plan import Plan, plan
from bitwright.progress import Progress, silent
from bitwright.provenance import here, peak_memory
from bitwright.recipe import Recipe
from bitwright.report import Report
from bitwright.road import Road
from bitwright.stacks import finish, ordered, unmeasured
from bitwright.wiring import Wiring


def compress(
    model: str | Path | nn.Module,
    recipe: Recipe,
    data: Data | None = None,
    *,
    out: str | Path | None = None,
    form: str = "native",
    wiring: Wiring | None = None,
    resume: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    stats: str | Path | None = None,
    batch: int = 4,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[nn.Module, Report]:
    """Compress a model: hub id, directory, `zoo:lm`, or a transformers model in memory.

    `data`: calibration windows (None where the recipe needs none). `out`: directory to write, block by block; without it the
    result stays in memory. `form`: the format to write.
    `stats`: a folder of stored statistics, filled on the first run and read instead of data later.
    `batch`: rows per forward pass. `device`: where blocks run and are solved (`auto`: a GPU if there is one).
    Returns the compressed model, on the CPU in fp32, and the report.
    Raises BadRequest with cause and remedy; blocks that were finished before it stay resumable.
    """
    from bitwright.allotting import allotted

    job = Job.of(model, recipe, data, wiring, strict, form)
    target, known = (Path(p) if p else None for p in (out, stats))
    with allotted(job, known, batch, choose_device(device), progress) as (job, known):
        road = job.road(target, known, batch, choose_device(device), progress)
        report = job.run(road, resume, overwrite)
    if out:
        return bitwright.load(out), report
    from bitwright.loading import assemble

    return assemble(job.source.config, road.tensors, job.quantization_config(road)), report


def choose_device(name: str) -> torch.device:
    """`auto` is an accelerator if there is one. Raises BadRequest where the device is not there."""
    return available(name)


@dataclass(frozen=True, eq=False)
class Job:
    """A request that has been checked: source, plan, data, format to write."""

    source: Checkpoint
    plan: Plan
    data: Data | None
    form: Format = Native()
    recipe: Recipe = Recipe()  # as asked: its budget not yet spent
    strict: bool = False
    allotment: Mapping[str, Any] | None = None  # how a budget was spent, for the report

    @classmethod
    def of(
        cls,
        model: str | Path | nn.Module,
        recipe: Recipe,
        data: Data | None,
        wiring: Wiring | None = None,
        strict: bool = False,
        form: str = "native",
    ) -> "Job":
        source, writer = open_checkpoint(model), index.form(form)
        if wiring is None:
            kind = getattr(source.config, "model_type", None)
            if kind not in index.WIRINGS:
                known = ", ".join(index.WIRINGS)
                raise BadRequest(f"There is no wiring for models of type {kind!r} yet (there is: {known}); pass `wiring`.")
            wiring = index.load(index.WIRINGS[kind])(source.config)
        if recipe.transforms:
            raise BadRequest("This version has no transforms yet; leave them out of the recipe.")
        source = source.renamed(wiring.renamed)
        if data is not None and (why := data.refusal(source.config)):
            raise BadRequest(why)
        spent = recipe if recipe.budget is None and recipe.bound is None else by_price(source, recipe, wiring, writer, strict)
        job = cls(source, plan(source, wiring, spent, strict, writer), data, writer, recipe, strict)
        if why := writer.refusal(job.model()):
            raise BadRequest(why)
        return job

    def following(self, recipe: Recipe, allotment: Mapping[str, Any]) -> "Job":
        """The same request by a recipe in which the budget is spent."""
        found = replace(self, plan=plan(self.source, self.plan.wiring, recipe, self.strict, self.form), allotment=allotment)
        if why := found.form.refusal(found.model()):
            raise BadRequest(why)
        return found

    def model(self) -> Model:
        """What the format must know, from the plan alone."""
        kept = {n: (self.source.shapes[n], self.source.dtypes[n]) for n in self.plan.kept}
        metas = {n: p.metas for n, p in self.plan.sites.items()}
        return Model(self.plain_config(), metas, kept, self.plan.tied_head, self.plan.inputs, self.companions())

    def road(self, out: Path | None, stats: Path | None, batch: int, device: torch.device, progress: Progress) -> Road:
        """The work, ready to begin. Raises BadRequest where it cannot."""
        if (
            out
            and self.source.root
            and (out.resolve() == self.source.root.resolve() or out.resolve() in self.source.root.resolve().parents)
        ):
            raise BadRequest(f"{out} holds the model that is being compressed; choose another directory.")
        fingerprint, needs = self.source.fingerprint(), self.plan.recipe.needs
        signature = self.signature(fingerprint, batch, stats is not None)
        where = out if out is None or isinstance(self.form, Native) else out / NATIVE
        directory = Directory(where, self.plan.blocks + 1, signature) if where else None
        store = Store(stats, fingerprint, self.data.sha256 if self.data else None) if stats and needs else None
        tokens = self.data.tokens if self.data is not None and needs else 0
        twice = self.plan.paused(tokens) > memory_left(device)
        road = Road(self.source, self.plan, self.data, batch, device, progress, directory, store, twice)
        if self.plan.recipe.after and self.data is None:
            raise BadRequest("Steps after compression need the calibration data, not only their statistics; give some with --data.")
        if needs and self.data is None:
            if store is None:
                raise BadRequest(f"The recipe {self.plan.recipe.name!r} needs calibration data; give some with --data.")
            if not store.full(self.plan.blocks, [n for n in needs if n not in GRADIENTS]):
                raise BadRequest(f"{stats} does not hold all statistics of this model; fill it by giving the data with --data.")
        return road

    def run(self, road: Road, resume: bool, overwrite: bool) -> Report:
        begun = time.perf_counter()
        if road.directory and not isinstance(self.form, Native):
            make_room(road.directory.out.parent, resume, overwrite)
        for i, name in enumerate(self.source.shapes):  # NaN is refused now, not after hours
            self.source.tensor(name)
            road.progress("checking weights", i + 1, len(self.source.shapes))
        state = road.directory.begin(resume, overwrite) if road.directory else {}
        with torch.no_grad():
            self.work(road, state)
        report = self.report(road, time.perf_counter() - begun)
        if road.directory:
            document = {"format": native.FORMAT, "recipe": self.plan.recipe.to_dict(), "report": report.to_dict()}
            size = sum(self.native_bits(name, metas) for name, metas in road.metas.items()) // 8
            size += sum(self.source.dtypes[n].itemsize * prod(self.source.shapes[n]) for n in self.plan.kept)
            road.directory.finish(self.config(road), self.companions(), document, size)
            finish(road.directory.out, self.plan.recipe.allocation, self.data, road.progress)
            if not isinstance(self.form, Native):
                remarks = deliver(road.directory.out, self.form, road.directory.out.parent, document, road.progress)
                report = replace(report, notes=report.notes + tuple(remarks))
        return report

    def work(self, road: Road, state: Mapping[str, Any]) -> None:
        """The road with batches that the device's memory holds: halved where it does not, from the last finished block on."""
        needs = tuple(n for n in self.plan.recipe.needs if n not in GRADIENTS)  # those were measured before the run
        while True:
            try:
                if road.store and self.data and needs and not road.store.full(self.plan.blocks, needs):
                    collect(
                        road.store,
                        self.source,
                        self.plan.wiring,
                        self.data,
                        needs,
                        road.batch,
                        road.device,
                        road.progress,
                        road.twice,
                    )
                return road.run(state)
            except torch.OutOfMemoryError as error:
                missing = ". ".join(str(error).split(". ")[:3]).rstrip(".")
            if road.batch == 1:
                raise BadRequest(
                    f"One row at a time does not fit {road.device} ({missing}); give shorter rows with --length, or --device cpu."
                )
            road.batch //= 2
            warnings.warn(f"{road.device} is out of memory; going on with batches of {road.batch} rows.", stacklevel=2)
            state = road.directory.begin(resume=True, overwrite=False) if road.directory else {}

    def data_name(self) -> str:
        return self.data.sha256 if self.data is not None else "no data"

    def signature(self, fingerprint: str, batch: int, stored: bool) -> str:
        """Names the work: another model, recipe, data, batch or version is other work."""
        parts = [self.plan.recipe.to_dict(), fingerprint, self.data_name(), bitwright.__version__, batch, stored]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def quantization_config(self, road: Road) -> dict[str, Any]:
        stack = ordered(self.plan.recipe.allocation, road.rows, road.metas)
        return native.quantization_config(road.metas, self.plan.tied_head, self.plan.inputs, stack)

    def native_bits(self, name: str, metas: Sequence[Mapping[str, Any]]) -> int:
        return Native().bits(name, metas, self.plan.inputs.get(name))

    def plain_config(self) -> dict[str, Any]:
        """The config.json of the source."""
        if self.source.root is None:
            found: dict[str, Any] = self.source.config.to_dict()
            return found
        return configuration(self.source.root)

    def config(self, road: Road) -> dict[str, Any]:
        """The config.json of the result."""
        found = self.plain_config()
        found["quantization_config"] = self.quantization_config(road)
        if found["quantization_config"]["tied_head"]:
            found["tie_word_embeddings"] = False  # tied through the terms, not through a float weight
        return found

    def companions(self) -> list[Path]:
        """Files of the source that are copied as they are."""
        return [] if self.source.root is None else beside(self.source.root)

    def report(self, road: Road, seconds: float) -> Report:
        data, recipe = self.data, self.plan.recipe
        asked = {
            "model": self.source.name,
            "recipe": recipe.to_dict(),
            "calibration": None if data is None else data.told(),
            "inputs": inputs_of(road),
            "allocation": self.allotment,
        }
        shapes, dtypes = self.source.shapes, self.source.dtypes
        return Report(
            asked=asked,
            rows=tuple(road.rows),
            kept=sum(self.plan.kept.values()),
            original=sum(dtypes[n].itemsize * prod(s) for n, s in shapes.items()),
            weights=sum(prod(s) for s in shapes.values()),
            seconds=seconds,
            peak=peak_memory(),
            provenance={"model sha256": self.source.fingerprint(), **here()},
            notes=(*unmeasured(recipe.allocation, data), *road.notes),
        )


def inputs_of(road: Road) -> str:
    """What the calibration inputs of every matrix had gone through."""
    if not road.plan.recipe.needs:
        return "none"
    if road.store:
        return "float (statistics store)"
    return (
        "as compressed up to the block before (memory did not hold all rows inside a block)"
        if road.twice
        else "as compressed so far"
    )
