"""Allotting: a budget becomes a recipe. Statistics, every choice rounded, what each loses, the solver: before the run, which obeys.

Everything that was measured stays in the statistics store (a folder of the user's, or one that goes when the run ends), so another
budget, bound or solver on the same model and data only solves.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import bitwright
from bitwright import index
from bitwright.allocation.base import Allocation, total
from bitwright.calibrate.collect import collect
from bitwright.calibrate.gradients import GRADIENTS, gradients
from bitwright.calibrate.store import Store
from bitwright.candidates import RoundedCandidates
from bitwright.errors import BadRequest
from bitwright.job import Job
from bitwright.kernels.devices import memory_left
from bitwright.menus import Menu, measured
from bitwright.progress import Progress

ROWS = 16  # of the calibration windows: gradients, and the KL of probes


@contextmanager
def allotted(
    job: Job, stats: Path | None, batch: int, device: torch.device, progress: Progress
) -> Iterator[tuple[Job, Path | None]]:
    """The job with its budget spent, and the folder of statistics to run it with, where the recipe needs any measured beforehand;
    otherwise what was given."""
    needs = job.plan.recipe.needs
    if not measured(job.recipe) and not set(needs) & set(GRADIENTS):
        yield job, stats
        return
    with tempfile.TemporaryDirectory() if stats is None else nullcontext(stats) as folder, torch.no_grad():
        store = Store(Path(folder), job.source.fingerprint(), job.data.sha256 if job.data else None)
        if measured(job.recipe):
            job = spent(job, store, batch, device, progress)
        else:
            measure(job, store, needs, batch, device, progress)
        yield job, Path(folder)


def spent(job: Job, store: Store, batch: int, device: torch.device, progress: Progress) -> Job:
    """The job by a recipe in which every unit has its choice."""
    allocation: Any = job.recipe.allocation
    menu = Menu.of(job.source, job.recipe, job.plan.wiring, job.form, job.strict)
    budget = menu.budget(job.recipe)
    loss = losses(job, allocation, menu, store, batch, device, progress)
    choice = allocation(loss, menu.price, budget)
    recipe = menu.spent(job.recipe, choice)
    return job.following(recipe, told(job, allocation, menu, loss, choice))


def losses(
    job: Job, allocation: Allocation, menu: Menu, store: Store, batch: int, device: torch.device, progress: Progress
) -> Float[Tensor, "u c"]:
    """The probe's table, from the store where it has been made before."""
    probe = allocation.probe
    assert probe is not None
    recipe = job.recipe
    needs = tuple(sorted({need for rule in menu.choices if (r := recipe.under(rule)) for need in r.needs} | set(recipe.needs)))
    name = [
        index.to_dict(probe),
        [index.to_dict(rule) for rule in menu.choices],
        index.to_dict(replace(recipe, allocation=None, budget=None)),
    ]
    mark = hashlib.sha256(json.dumps([name, bitwright.__version__]).encode()).hexdigest()[:32]
    path = store.folder / "losses" / f"{mark}.json"
    if path.is_file():
        return torch.tensor(json.loads(path.read_text()), dtype=torch.float64)
    measure(job, store, tuple(sorted({*needs, *probe.needs})), batch, device, progress)
    windows = job.data.take(ROWS) if job.data is not None else None
    found = RoundedCandidates(job.source, job.plan.wiring, menu, needs, store, windows, device, progress)
    found.round()
    loss = probe(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(loss.tolist()))
    return loss


def measure(job: Job, store: Store, needs: tuple[str, ...], batch: int, device: torch.device, progress: Progress) -> None:
    """Fill the store with what is missing. Raises BadRequest where that takes data and there is none."""
    moments = tuple(n for n in needs if n not in GRADIENTS) or ("gram",)
    plan, wiring = job.plan, job.plan.wiring
    if not store.full(plan.blocks, moments):
        if job.data is None:
            raise BadRequest(
                f"The allocation of {plan.recipe.name!r} measures losses and needs calibration data; give some with --data."
            )
        twice = plan.paused(job.data.ids.numel()) > memory_left(device)
        collect(store, job.source, wiring, job.data, moments, batch, device, progress, twice)
    wanted = [n for n in needs if n in GRADIENTS]
    if wanted and not all(set(wanted) <= set(store.site(name)) for name in plan.sites if name.startswith(f"{wiring.blocks}.")):
        if job.data is None:
            raise BadRequest("The statistics store holds no gradients; give the data with --data.")
        for name, values in gradients(job.source, wiring, job.data.take(ROWS), device, progress):
            store.put_site(name, values)


def told(job: Job, allocation: Allocation, menu: Menu, loss: Float[Tensor, "u c"], choice: Tensor) -> dict[str, Any]:
    """What was decided, as the report shows it."""
    units = [
        {
            "sites": list(unit),
            "weights": sum(p.shape[0] * p.shape[1] for n in unit if (p := next(filter(None, menu.planned[n]), None))),
            "choice": int(c),
            "bits": menu.price[u].tolist(),
            "loss": [x if torch.isfinite(torch.tensor(x)) else None for x in loss[u].tolist()],
        }
        for u, (unit, c) in enumerate(zip(menu.units, choice.tolist()))
    ]
    return {
        "allocation": index.to_dict(allocation),
        "budget": job.recipe.budget,
        "choices": [index.to_dict(rule) for rule in menu.choices],
        "units": units,
        "foretold": total(loss, choice),
    }
