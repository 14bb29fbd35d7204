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
from jaxtyping import Integer as Ints
from torch import Tensor

import bitwright
from bitwright import index
from bitwright.allocation.base import Allocation, Proposing, reach, step, total
from bitwright.allocation.bound import Proposal, smallest
from bitwright.allocation.uniform import Uniform
from bitwright.calibrate.base import Data
from bitwright.calibrate.collect import collect
from bitwright.calibrate.gradients import GRADIENTS, gradients
from bitwright.calibrate.store import Store
from bitwright.candidates import RoundedCandidates
from bitwright.errors import BadRequest, in_place_of
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
    if not measured(job.recipe) and not set(job.plan.recipe.needs) & set(GRADIENTS):
        yield job, stats
        return
    with tempfile.TemporaryDirectory() if stats is None else nullcontext(stats) as folder, torch.no_grad():
        held = None
        if job.recipe.bound is not None:
            job, held = parted(job)
        store = Store(Path(folder), job.source.fingerprint(), job.data.sha256 if job.data else None)
        if measured(job.recipe):
            job = spent(job, store, held, batch, device, progress)
        else:
            measure(job, store, job.plan.recipe.needs, batch, device, progress)
        yield job, Path(folder)


def parted(job: Job) -> tuple[Job, Data]:
    """The job on its data without the last windows, and those: what a bound is checked on must not have been fitted."""
    if job.data is None or len(job.data.inputs) < 2 * ROWS:
        raise BadRequest(f"A bound on the KL holds back {ROWS} windows and needs as many again; give --samples {2 * ROWS} or more.")
    return replace(job, data=job.data.take(len(job.data.inputs) - ROWS)), job.data.part(slice(-ROWS, None))


def spent(job: Job, store: Store, held: Data | None, batch: int, device: torch.device, progress: Progress) -> Job:
    """The job by a recipe in which every unit has its choice."""
    allocation: Any = job.recipe.allocation
    if isinstance(allocation, Proposing) and job.recipe.budget is None:
        raise BadRequest("This allocation proposes models for a budget; give --budget or --size, or --kl with another allocation.")
    menu = Menu.of(job.source, job.recipe, job.plan.wiring, job.form, job.strict)
    budget = menu.budget(job.recipe) if job.recipe.bound is None else None  # refused before anything is measured
    needs = tuple(sorted({*job.recipe.needs, "gram"}))  # what a choice loses is judged at the outputs, by whatever it was rounded
    windows = held or (job.data.take(ROWS) if job.data is not None else None)
    found = RoundedCandidates(job.source, job.plan.wiring, menu, needs, store, windows, device, progress)
    if budget is not None and isinstance(allocation, Proposing):
        loss, choice = proposed(job, allocation, found, budget, batch)
    else:
        loss = losses(job, allocation, found, batch)
        choice = under(found, allocation, loss, job.recipe.bound) if budget is None else allocation(loss, menu.price, budget)
    return job.following(menu.spent(job.recipe, choice), told(job, allocation, menu, loss, choice))


def proposed(
    job: Job, allocation: Any, found: RoundedCandidates, budget: int, batch: int
) -> tuple[Float[Tensor, "u c"], Ints[Tensor, "u"]]:
    """The mean of the tables of both domains, and of what the allocation proposes the model with the least KL on all windows."""
    tables = torch.stack([losses(job, allocation, part, batch) for part in found.domains()])
    names = [unit[0] for unit in found.menu.units]
    proposals, measured = allocation.proposals(tables, found.menu.price, budget, names), []
    for i, choice in enumerate(proposals):
        found.progress("measuring splits of the budget", i, len(proposals))
        measured.append(found.divergence(dict(enumerate(choice.tolist()))))
    return tables.mean(0), proposals[measured.index(min(measured))]


def under(found: RoundedCandidates, allocation: Allocation, loss: Float[Tensor, "u c"], bound: float | None) -> Ints[Tensor, "u"]:
    """The smallest choices whose KL on the held-out windows stays under the bound, with room for the windows' own spread."""
    price, most = found.menu.price, bound or 0.0

    def solve(budget: int) -> Proposal:
        choice = allocation(loss, price, budget)
        return Proposal(tuple(choice.tolist()), int(total(price, choice)), float(total(loss, choice)))

    def kl(proposal: Proposal) -> float:
        found.progress(f"searching below {most:g}", 0, 1)
        return found.measured(proposal.name)

    low, high = reach(loss, price)
    return torch.tensor(smallest(solve, kl, low, high, step(loss, price), most).name)


def losses(job: Job, allocation: Allocation, found: RoundedCandidates, batch: int) -> Float[Tensor, "u c"]:
    """The probe's table, from the store where it has been made before."""
    probe: Any = allocation.probe
    name = [
        index.to_dict(part) for part in (probe, found.menu.choices, replace(job.recipe, allocation=None, budget=None, bound=None))
    ]
    read = found.windows and found.windows.sha256
    mark = hashlib.sha256(json.dumps([name, found.menu.units, read, bitwright.__version__]).encode()).hexdigest()[:32]
    path = found.store.folder / "losses" / f"{mark}.json"
    if path.is_file():
        return torch.tensor(json.loads(path.read_text()), dtype=torch.float64)
    measure(job, found.store, tuple(sorted({*found.needs, *probe.needs})), batch, found.device, found.progress)
    found.round()
    loss: Float[Tensor, "u c"] = probe(found)
    with in_place_of(path) as partial:
        partial.write_text(json.dumps(loss.tolist()))
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
        twice = plan.paused(job.data.tokens) > memory_left(device)
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
        "bound": job.recipe.bound,
        "choices": [index.to_dict(rule) for rule in menu.choices],
        "units": units,
        "foretold": total(loss, choice),
        "even": even(loss, menu, int(total(menu.price, choice))),
    }


def even(loss: Float[Tensor, "u c"], menu: Menu, budget: int) -> float | None:
    """What is lost where all units have the same choice and spend no more; None where there is no such choice."""
    try:
        return float(total(loss, Uniform()(loss, menu.price, budget)))
    except BadRequest:
        return None
