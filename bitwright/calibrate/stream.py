"""The stream: calibration rows walk through the model block by block, and stop at every tap.

A tap is an input tensor and the sites that read it (q, k and v; gate and up). When every row has arrived at a tap, the
statistics of its tensor are complete; the caller may then overwrite the weights of its readers, and the very same forward
passes go on with the new weights. Each row therefore passes each block once, and what a layer is calibrated on is exactly what
it will meet: the outputs of the compressed layers before it ("true sequential", in one pass instead of one per tap).

The pauses are greenlets: every batch's forward runs in one, a hook on the first reader of a tap switches back to the walk.
Nothing is traced; hooks cut, and whatever keyword arguments the model passes to its blocks (masks, rotary embeddings) are kept.
Paused batches hold their activations, so memory is one block's activations of all rows.

The second lane: with `teacher=True` a copy of the block, never overwritten, runs on the float model's own rows, pausing at the
same taps, for statistics that compare the two.
"""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Shaped
from torch import Tensor, nn

from bitwright import index
from bitwright.calibrate.stats import Known
from bitwright.sites import Site


@dataclass(eq=False)
class Rows:
    """One batch on its way: hidden states of the compressed lane and of the teacher, and what every block is called with."""

    hidden: Tensor
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]  # per block: arguments after the hidden states, keyword arguments
    teacher: Tensor | None = None

    def to(self, device: torch.device) -> "Rows":
        return Rows(*(moved(part, device) for part in (self.hidden, self.calls, self.teacher)))


def moved(value: Any, device: torch.device) -> Any:
    """Every tensor inside tuples, lists and dicts on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(v, device) for v in value)
    return {k: moved(v, device) for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Tap:
    """An input tensor, named by its first reader, and all its readers."""

    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.readers[0]


class Recorder(nn.Module):
    """Stands in for a block: passes the hidden states on and keeps the other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call, self.hidden = (args, kwargs), hidden
        return hidden


def embed(
    body: nn.Module,
    blocks: nn.ModuleList,
    inputs: Shaped[Tensor, "rows ..."],
    batch: int,
    teacher: bool,
    call: Mapping[str, Any] = MappingProxyType({"use_cache": False}),
) -> list[Rows]:
    """The rows as they enter the first block. `body` is the model without its head, called on `inputs` (ids, images) with the
    keyword arguments `call`; its blocks need not hold weights."""
    originals = list(blocks)
    recorders = [Recorder() for _ in originals]
    found = []
    try:
        for i, recorder in enumerate(recorders):
            blocks[i] = recorder
        for part in inputs.split(batch):
            body(part, **call)
            start = recorders[0].hidden
            found.append(Rows(start, [r.call for r in recorders], start if teacher else None))
    finally:
        for i, original in enumerate(originals):
            blocks[i] = original
    return found


def discover(block: nn.Module, sites: Mapping[str, Site], rows: Rows, number: int) -> list[Tap]:
    """Which sites read one and the same tensor alike, in the order of their calls, by running one row through the block."""
    seen: list[tuple[Tensor, list[str]]] = []  # the tensors are held while identities are compared: addresses are reused

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            for tensor, readers in seen:
                if tensor is args[0] and sites[readers[0]].patches == sites[name].patches:
                    readers.append(name)
                    return
            seen.append((args[0], [name]))

        return hook

    handles = [site.module.register_forward_pre_hook(note(name)) for name, site in sites.items()]
    try:
        run(block, rows.hidden, rows.calls[number])
    finally:
        for handle in handles:
            handle.remove()
    return [Tap(tuple(dict.fromkeys(readers))) for _, readers in seen]


def run(block: Callable[..., Any], hidden: Tensor, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    out = block(hidden, *call[0], **call[1])
    return out[0] if isinstance(out, tuple) else out


def push(block: nn.Module, rows: Sequence[Rows], number: int) -> None:
    """All rows through a block in which nothing changes."""
    for r in rows:
        r.hidden = run(block, r.hidden, r.calls[number])
        if r.teacher is not None:
            r.teacher = run(block, r.teacher, r.calls[number])


@dataclass(eq=False)
class Lane:
    """One forward pass that pauses at taps. `at` is the tap it waits at; None once it has come out."""

    work: greenlet
    at: int | None = None
    seen: Tensor | None = None
    out: Tensor | None = field(default=None, repr=False)

    def advance(self) -> None:
        result = self.work.switch()
        if self.work.dead:
            self.at, self.seen, self.out = None, None, result
        else:
            self.at, self.seen = result


def walk(
    block: nn.Module,
    sites: Mapping[str, Site],
    taps: Sequence[Tap],
    rows: Sequence[Rows],
    number: int,
    needs: Sequence[str],
) -> Generator[tuple[Tap, Known], None, None]:
    """Push all rows through block `number`, yielding every tap with its statistics; weights may be overwritten at each yield.

    Afterwards the rows stand before the next block. Raises RuntimeError where a reader is given another tensor than its tap's.
    """
    shadow, shadow_sites = shadow_of(block, sites, rows)
    home = getcurrent()
    handles = []
    for i, tap in enumerate(taps):
        for module in filter(None, (sites[tap.name].module, shadow_sites.get(tap.name))):
            handles.append(module.register_forward_pre_hook(pause(home, i)))
        for name in tap.readers[1:]:
            handles.append(sites[name].module.register_forward_pre_hook(check(name)))
    try:
        lanes = [Lane(greenlet(lambda r=r: run(block, r.hidden, r.calls[number]))) for r in rows]
        others = [Lane(greenlet(lambda r=r: run(shadow, r.teacher, r.calls[number]))) if shadow else None for r in rows]
        for lane in (*lanes, *filter(None, others)):
            lane.advance()
        while waiting := [lane.at for lane in lanes if lane.at is not None]:
            i = min(waiting)
            here = [(lane, other) for lane, other in zip(lanes, others) if lane.at == i]
            site = sites[taps[i].name]
            stats = collectors(site, needs)
            for lane, other in here:
                take(site, stats, lane.seen, other.seen if other else None)
            yield taps[i], known_of(site, stats)
            for lane, other in here:
                lane.advance()
                if other:
                    other.advance()
        for r, lane, other in zip(rows, lanes, others):
            assert lane.out is not None
            r.hidden = lane.out
            if other:
                r.teacher = other.out
    finally:
        for handle in handles:
            handle.remove()


def walk_twice(
    block: nn.Module,
    sites: Mapping[str, Site],
    taps: Sequence[Tap],
    rows: Sequence[Rows],
    number: int,
    needs: Sequence[str],
) -> Generator[tuple[Tap, Known], None, None]:
    """`walk` where memory does not hold what all rows would pause with: one pass for the statistics of all taps, which therefore
    see the block's own weights as they were, and one through the block as it is afterwards."""
    shadow, shadow_sites = shadow_of(block, sites, rows)
    stats = {tap.name: collectors(sites[tap.name], needs) for tap in taps}
    seen: dict[str, Tensor] = {}
    handles = []
    for name in stats:
        if shadow:
            handles.append(shadow_sites[name].register_forward_pre_hook(lambda _, args, n=name: seen.update({n: args[0]})))
        handles.append(
            sites[name].module.register_forward_pre_hook(lambda _, args, n=name: take(sites[n], stats[n], args[0], seen.get(n)))
        )
    try:
        for r in rows:
            if shadow and r.teacher is not None:
                r.teacher = run(shadow, r.teacher, r.calls[number])
            run(block, r.hidden, r.calls[number])
    finally:
        for handle in handles:
            handle.remove()
    for tap in taps:
        yield tap, known_of(sites[tap.name], stats[tap.name])
    for r in rows:
        r.hidden = run(block, r.hidden, r.calls[number])


def shadow_of(block: nn.Module, sites: Mapping[str, Site], rows: Sequence[Rows]) -> tuple[nn.Module | None, dict[str, nn.Module]]:
    """A copy of the block for the teacher's lane and its sites, where there is a teacher."""
    if all(r.teacher is None for r in rows):
        return None, {}
    shadow, prefix = copy.deepcopy(block), prefix_of(sites, block)
    return shadow, {n: shadow.get_submodule(n.removeprefix(prefix)) for n in sites}


def collectors(site: Site, needs: Sequence[str]) -> dict[str, Any]:
    return {name: index.resolve("stats", name)(site.shape[1]) for name in needs}


def take(site: Site, stats: Mapping[str, Any], seen: Tensor | None, teacher: Tensor | None) -> None:
    assert seen is not None
    for stat in stats.values():
        stat.add(site.tokens(seen), None if teacher is None else site.tokens(teacher))


def known_of(site: Site, stats: Mapping[str, Any]) -> Known:
    """The statistics of a tap once all rows have been there."""
    known = Known({name: stat.value() for name, stat in stats.items()})
    if stats and not (tokens := next(iter(stats.values())).tokens):
        known.note(f"no calibration token reached {site.name}")
    elif stats and tokens < site.shape[1]:
        known.note(f"only {tokens} calibration tokens for {site.shape[1]} inputs")
    if stats and site.patches is not None and site.patches.groups > 1:
        known.note(f"its {site.patches.groups} groups share the statistics of their inputs")
    return known


def pause(home: greenlet, i: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        current: Any = getcurrent()
        current.tap = args[0]
        home.switch((i, args[0]))

    return hook


def check(name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        current: Any = getcurrent()
        if args[0] is not current.tap:
            raise RuntimeError(f"{name} does not read the tensor of its tap: the block is not built like the one before it")

    return hook


def prefix_of(sites: Mapping[str, Site], block: nn.Module) -> str:
    """What the full names of a block's sites start with."""
    name, site = next(iter(sites.items()))
    local = next(n for n, module in block.named_modules() if module is site.module)
    return name.removesuffix(local)
