"""The road: one block at a time, from a checkpoint to terms on disk or in memory.

    embed the rows -> for each block: load, stop at taps, round each site, push on, write its shard -> what is outside the blocks

Nothing turns back. Only one block holds weights at a time, and the rows are pushed through what was stored, not what was meant.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.allocation.stack import Stack
from bitwright.calibrate.base import Data
from bitwright.calibrate.collect import head_moments
from bitwright.calibrate.gradients import GRADIENTS
from bitwright.calibrate.stats import Known
from bitwright.calibrate.store import HEAD, Store
from bitwright.calibrate.stream import Rows, discover, embed, push, walk, walk_twice
from bitwright.checkpoint import Checkpoint, fill, skeleton, whole
from bitwright.export.native import flatten
from bitwright.export.resumable import Directory
from bitwright.finishing import finish
from bitwright.grids.base import Params
from bitwright.grids.fit import AbsMax
from bitwright.joint import after_training, by_weights, of_block, of_model, train_block, train_model, trainable
from bitwright.matrix import Solved, key, lost_by_prefixes
from bitwright.plan import Plan, inside
from bitwright.progress import Progress
from bitwright.report import Row
from bitwright.rounding.base import JointRounding
from bitwright.sites import Site, sites
from bitwright.terms import base
from bitwright.terms.base import Json, Terms, decode


@dataclass(eq=False)
class Road:
    """One run. `rows` and `metas` grow with every site; `tensors` collects what is not written to a `directory`."""

    source: Checkpoint
    plan: Plan
    data: Data | None
    batch: int
    device: torch.device
    progress: Progress
    directory: Directory | None = None
    store: Store | None = None
    twice: bool = False  # whether every block is run twice, because what rows would pause with does not fit in memory
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    metas: dict[str, list[Mapping[str, Json]]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def run(self, state: Mapping[str, Json]) -> None:
        """All of it, or what an interrupted run left to do (`state`)."""
        for entry in state.get("rows", []):
            self.note(Row.from_dict(entry["row"]), entry["metas"])
        model: Any = skeleton(self.source.config)
        blocks = self.plan.wiring.block_list(model)
        outer = {n: Site.of(n, model.get_submodule(n)) for n in self.plan.sites if not self.inside(n)}
        for name in (*self.plan.wiring.embed, *self.plan.wiring.norm):
            fill(model.get_submodule(name), self.source, name)
        before = {n: site for n, site in outer.items() if site and n != self.plan.wiring.head}
        coded = {n: self.solve(site, Known(), None) for n, site in before.items()}
        stream = self.start(model, blocks, state.get("done", 0))
        for i in range(state.get("done", 0), len(blocks)):
            self.progress("compressing", i, len(blocks))
            self.block(blocks[i], i, stream)
        self.progress("compressing", len(blocks), len(blocks))
        for name, site in outer.items():
            if site is not None and name not in coded:
                fill(site.module, self.source, name, self.device)
                coded[name] = self.solve(site, self.after_blocks(model, stream), None)
        self.emit(len(blocks), coded, {n for n in self.plan.kept if not self.inside(n)})
        if self.data is not None and (of_model(self.plan) or self.plan.recipe.after):
            if self.directory:
                self.directory.keep()
            if of_model(self.plan):
                self.together(of_model(self.plan), self.data)
            if self.plan.recipe.after:
                self.finish(self.data)

    def together(self, joints: Sequence[JointRounding], data: Data) -> None:
        """All matrices of the blocks once more, as one problem; needs the whole model in memory. Shards are written again."""
        model = whole(self.source).to(self.device)
        here = {n: s for n, s in inside(model, self.plan.wiring).items() if n in self.plan.sites}
        stored = self.stored()
        leaves = {n: t.to(self.device) for part in stored for n, t in part.items() if ".terms." in n}
        terms = {n: load_terms(n, self.metas[n], leaves) for n in here}
        batches = list(data.inputs.to(self.device).split(self.batch))
        self.progress("training the whole model", 0, 1)
        found, notes = train_model(joints, self.plan, model, here, batches, terms)
        for row in [r for r in self.rows if r.name in trainable(self.plan, list(here))]:
            W, ours = here[row.name].matrix(), found[row.name]
            row = by_weights(row, W, self.plan.sites[row.name].bands)
            self.note(after_training(row, W, self.metas[row.name], ours, Known(), notes), [t.meta() for t in ours])
        for i, part in enumerate(stored):
            held = {name for name in found if any(n.startswith(f"{name}.terms.") for n in part)}
            for n in [n for n in part if n.partition(".terms.")[0] in held and ".terms." in n]:
                del part[n]  # a matrix may have more terms now, or fewer
            part |= {n: t.cpu() for n, t in flatten({name: found[name] for name in held}, {}).items()}
            if self.directory:
                self.directory.shard(i, part)
        self.progress("training the whole model", 1, 1)

    def stored(self) -> list[dict[str, Tensor]]:
        """All tensors so far, shard by shard."""
        return [self.tensors] if self.directory is None else [self.directory.read(i) for i in range(self.directory.number)]

    def finish(self, data: Data) -> None:
        """The recipe's steps over the whole model. Shards are written again."""
        self.progress("finishing", 0, 1)
        stored, batches = self.stored(), data.inputs.to(self.device).split(self.batch)
        every = {n: t for part in stored for n, t in part.items()}
        changed, self.notes = finish(self.plan, self.source, every, self.metas, batches, self.device)
        for i, part in enumerate(stored):
            part |= {n: t for n, t in changed.items() if n in part}
            if self.directory:
                self.directory.shard(i, part)
        self.progress("finishing", 1, 1)

    def start(self, model: Any, blocks: nn.ModuleList, done: int) -> list[Rows]:
        """The rows before block `done`: embedded, or as an interrupted run left them. None where no data is walked."""
        if not self.plan.recipe.needs or self.data is None or (self.store is not None and not of_block(self.plan)):
            return []
        stream = embed(model.base_model, blocks, self.data.inputs, self.batch, self.double, self.plan.wiring.call)
        if done and self.directory:
            left = self.directory.hidden(done)
            for lane in ("hidden", "teacher") if self.double else ("hidden",):
                rows = torch.cat([left[f"{k}.{lane}"] for k in range(sum(name.endswith(lane) for name in left))])
                for r, part in zip(stream, rows.split(self.batch), strict=True):
                    setattr(r, lane, part)
        return [r.to(self.device) for r in stream]

    @property
    def double(self) -> bool:
        """Whether something compares with the float teacher, which then walks along."""
        return "cross" in self.plan.recipe.needs or bool(of_block(self.plan))

    @property
    def stacked(self) -> bool:
        return isinstance(self.plan.recipe.allocation, Stack)

    def inside(self, name: str) -> bool:
        return name.startswith(f"{self.plan.wiring.blocks}.")

    def block(self, block: nn.Module, i: int, stream: Sequence[Rows]) -> None:
        """One block, from its weights to its shard."""
        prefix = f"{self.plan.wiring.blocks}.{i}."
        fill(block, self.source, prefix[:-1], self.device)
        here = {n: s for n, s in sites(block, prefix).items() if n in self.plan.sites}
        terms, scales, tops = {}, {}, fused_tops(self.plan, here, prefix)
        joints, of = of_block(self.plan) if stream else (), {}
        before = [replace(r) for r in stream] if joints else []
        weights = {name: site.matrix().clone() for name, site in here.items()} if joints else {}
        if not here:  # nothing to compress in it, but what comes next meets its outputs
            push(block, stream, i)
        for readers, known in self.visits(block, here, stream, i) if here else ():
            for name in readers:
                terms[name], of[name] = self.solve(here[name], known, i, tops.get(name)), known
                if (inputs := self.plan.sites[name].inputs) is not None and inputs.needs:
                    scales[name] = inputs.calibrate(known[inputs.needs[0]])
                if stream:  # what comes next is calibrated on what was stored
                    here[name].put(decode(terms[name]))
        if joints:
            self.progress("training", i, self.plan.blocks)
            terms, scales, notes = train_block(joints, self.plan, block, here, before, stream, i, weights, terms, of, scales)
            for name in trainable(self.plan, list(terms)):
                row = after_training(
                    next(r for r in self.rows if r.name == name),
                    weights[name],
                    self.metas[name],
                    terms[name],
                    of[name],
                    notes[name],
                )
                self.note(row, [t.meta() for t in terms[name]])
        self.emit(i, terms, {n for n in self.plan.kept if n.startswith(prefix)}, scales)
        if self.directory:
            self.directory.checkpoint(
                i + 1,
                [{"row": asdict(r), "metas": self.metas[r.name]} for r in self.rows if r.block is not None],
                hidden(stream),
            )
        block.to("meta")

    def visits(
        self, block: nn.Module, here: Mapping[str, Site], stream: Sequence[Rows], i: int
    ) -> Iterator[tuple[Sequence[str], Known]]:
        """Sites that share an input, with what is known of it: what the rows that stop there say, the store, or nothing."""
        needs = self.plan.recipe.needs
        if stream:
            for tap, known in (walk_twice if self.twice else walk)(
                block, here, discover(block, here, stream[0], i), stream, i, needs
            ):
                yield tap.readers, known
        elif self.store is not None:
            for tap in self.store.taps(i):
                if readers := [n for n in tap.readers if n in here]:
                    yield readers, self.store.known(tap, [n for n in needs if n not in GRADIENTS]).to(self.device)
        else:
            yield from (((name,), Known()) for name in here)

    def after_blocks(self, model: Any, stream: Sequence[Rows]) -> Known:
        """What is known of the input of the output head."""
        if stream:
            return head_moments(model, self.plan.wiring, stream)
        return self.store.known(HEAD, ("gram",)).to(self.device) if self.store is not None else Known()

    def solve(self, site: Site, known: Known, block: int | None, top: Params | None = None) -> Terms:
        """Round one matrix, or take what a probe has already rounded, and write its line of the report."""
        planned, begun = self.plan.sites[site.name], time.perf_counter()
        if self.store is not None:
            known = self.store.with_own(site.name, known, self.plan.recipe.needs, self.device)
        kept = (
            Solved.read(self.store.codes(key(site.name, planned, self.plan.recipe.needs, top)))
            if self.store and not self.double
            else None
        )
        found = kept or Solved.of(site.matrix(), planned, known, top)
        prefixes = lost_by_prefixes(site.matrix(), found.terms, known.values.get("gram")) if self.stacked else []
        seconds, H = time.perf_counter() - begun, known.values.get("gram")
        remarks = (*((planned.note,) if planned.note else ()), *found.notes)
        scale = found.energy or 1.0
        error = float(found.errors.sum(dtype=torch.float64))
        row = Row(
            site.name, block, site.shape, planned.bits, error / scale, found.nearest / scale, "weights" if H is None else "output",
            seconds, tuple(t.meta()["kind"] for t in found.terms), remarks, tuple(e / (found.energy or 1.0) for e in prefixes),
        )  # fmt: skip
        self.note(row, [t.meta() for t in found.terms])
        if block is None:
            site.put(decode(found.terms))
        return found.terms

    def note(self, row: Row, metas: Sequence[Mapping[str, Json]]) -> None:
        self.rows = [r for r in self.rows if r.name != row.name] + [row]
        self.metas[row.name] = list(metas)

    def emit(self, i: int, terms: Mapping[str, Terms], kept: set[str], scales: Mapping[str, Params] | None = None) -> None:
        tensors = {n: t.cpu() for n, t in flatten(terms, scales or {}).items()}
        tensors |= {name: self.source.tensor(name) for name in sorted(kept)}
        if self.directory:
            self.directory.shard(i, tensors)
        else:
            self.tensors |= tensors


def fused_tops(plan: Plan, here: Mapping[str, Site], prefix: str) -> dict[str, Params]:
    """One second level for matrices that engines load as one (NVFP4's fp32 scale of q, k and v): that of all their weights."""
    found: dict[str, Params] = {}
    for part in plan.wiring.fused:
        names = [f"{prefix}{name}" for name in part if f"{prefix}{name}" in here]
        bands = [plan.sites[name].bands[0] for name in names]
        if len(names) > 1 and all((b.grid, b.layout) == (bands[0].grid, bands[0].layout) for b in bands):
            grid: Any = bands[0].grid
            whole = [name for name, leaf in grid.leaves.items() if leaf.shared == "tensor" and name.endswith("_top")]
            if whole:
                groups = torch.cat([band.layout.split(here[name].matrix()) for name, band in zip(names, bands)])
                p = replace(grid, by=AbsMax()).fit(groups)
                found |= {name: {leaf: p[leaf][:1].clone() for leaf in whole} for name in names}
    return found


def hidden(stream: Sequence[Rows]) -> dict[str, Tensor]:
    """The rows of the stream as named tensors, to be kept for a resumed run."""
    lanes = {f"{k}.hidden": r.hidden for k, r in enumerate(stream)}
    return lanes | {f"{k}.teacher": r.teacher for k, r in enumerate(stream) if r.teacher is not None}


def load_terms(site: str, metas: Sequence[Mapping[str, Json]], tensors: Mapping[str, Tensor]) -> Terms:
    """The terms of a matrix from what was stored of it."""
    return tuple(
        base.load(meta, {leaf: tensors[f"{site}.terms.{i}.{leaf}"] for leaf in base.spec(meta)}) for i, meta in enumerate(metas)
    )
