"""The stream: one pass with pauses equals running the block again before every tap; taps are what shares an input."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitwright import job, recipes
from bitwright.calibrate.stats import Gram
from bitwright.calibrate.stream import discover, embed, run, walk, walk_twice
from bitwright.checkpoint import open_checkpoint, skeleton
from bitwright.job import compress
from bitwright.matrix import Solved
from bitwright.models.llama import wiring
from bitwright.plan import plan
from bitwright.recipe import Rule
from bitwright.road import fill
from bitwright.sites import sites
from bitwright.terms.base import decode

CPU = torch.device("cpu")
LOCAL = [
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
]


def opened(directory: Path) -> Any:
    source = open_checkpoint(directory)
    model: Any = skeleton(source.config)
    for name in ("model.embed_tokens", "model.norm", "model.layers.0"):
        fill(model.get_submodule(name), source, name, CPU)
    return model


def test_taps_are_what_shares_an_input(tiny_llama: Callable[..., Path], tokens: Any) -> None:
    model = opened(tiny_llama())
    block = model.model.layers[0]
    with torch.no_grad():
        rows = embed(model.model, model.model.layers, tokens().ids, 2, False)
        taps = discover(block, sites(block, "model.layers.0."), rows[0], 0)
    assert [tuple(n.removeprefix("model.layers.0.") for n in tap.readers) for tap in taps] == LOCAL


def coarse(W: torch.Tensor) -> torch.Tensor:
    return (W * 20).round() / 20


@torch.no_grad()
def test_one_pass_with_pauses_is_a_pass_per_tap(tiny_llama: Callable[..., Path], tokens: Any) -> None:
    paused, again = opened(tiny_llama()), opened(tiny_llama())
    rows = embed(paused.model, paused.model.layers, tokens().ids, 2, False)
    block, here = paused.model.layers[0], sites(paused.model.layers[0], "model.layers.0.")
    taps = discover(block, here, rows[0], 0)
    before = [r.hidden for r in rows]
    found = []
    for tap, known in walk(block, here, taps, rows, 0, ("gram",)):
        found.append(known.gram)
        for name in tap.readers:
            here[name].put(coarse(here[name].matrix()))
    plain, there = again.model.layers[0], sites(again.model.layers[0], "model.layers.0.")
    for tap, gram in zip(taps, found):
        stat = Gram(there[tap.name].shape[1])
        seen: list[torch.Tensor] = []
        handle = there[tap.name].module.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        for hidden, r in zip(before, rows):
            run(plain, hidden, r.calls[0])
        handle.remove()
        for x in seen:
            stat.add(x.flatten(0, -2))
        assert torch.equal(stat.value(), gram)
        for name in tap.readers:
            there[name].put(coarse(there[name].matrix()))
    for hidden, r in zip(before, rows):
        assert torch.equal(run(plain, hidden, r.calls[0]), r.hidden)


@torch.no_grad()
def test_the_teacher_lane_is_the_float_model(tiny_llama: Callable[..., Path], tokens: Any) -> None:
    model = opened(tiny_llama())
    rows = embed(model.model, model.model.layers, tokens().ids, 2, True)
    block, here = model.model.layers[0], sites(model.model.layers[0], "model.layers.0.")
    wanted = [run(block, r.hidden, r.calls[0]) for r in rows]
    taps = discover(block, here, rows[0], 0)
    crosses = {}
    for tap, known in walk(block, here, taps, rows, 0, ("gram", "cross")):
        crosses[tap.name] = (known["cross"], known.gram)
        for name in tap.readers:
            here[name].put(coarse(here[name].matrix()))
    assert all(torch.equal(r.teacher, w) for r, w in zip(rows, wanted) if r.teacher is not None)
    assert not any(torch.equal(r.hidden, w) for r, w in zip(rows, wanted))
    first, *_, last = crosses.values()
    assert torch.allclose(first[0], first[1])  # before anything is rounded both lanes see the same
    assert not torch.allclose(last[0], last[1])


@torch.no_grad()
def test_two_passes_see_the_block_as_it_was_and_leave_it_as_it_is(tiny_llama: Callable[..., Path], tokens: Any) -> None:
    """Where nothing is overwritten, both walks tell the same; where weights are, the second pass goes through the new ones."""
    needs, told, after = ("gram", "cross"), {}, {}
    for which in (walk, walk_twice):
        for change in (False, True):
            model = opened(tiny_llama())
            rows = embed(model.model, model.model.layers, tokens().ids, 2, True)
            block, here = model.model.layers[0], sites(model.model.layers[0], "model.layers.0.")
            for tap, known in which(block, here, discover(block, here, rows[0], 0), rows, 0, needs):
                told[which, change, tap.name] = known.values
                for name in tap.readers if change else ():
                    here[name].put(coarse(here[name].matrix()))
            after[which, change] = torch.cat([part for r in rows for part in (r.hidden, r.teacher)])
    for name in {name for _, _, name in told}:
        once, twice, changed = (
            told[key]["gram"] for key in ((walk, False, name), (walk_twice, False, name), (walk_twice, True, name))
        )
        assert torch.allclose(once, twice, rtol=1e-5, atol=1e-6 * float(once.abs().max())) and torch.equal(twice, changed)
        assert torch.allclose(told[walk, False, name]["cross"], told[walk_twice, False, name]["cross"], rtol=1e-4, atol=1e-5)
    for change in (False, True):
        assert torch.allclose(after[walk, change], after[walk_twice, change], rtol=1e-5, atol=1e-6)


def test_a_machine_too_small_for_all_rows_walks_twice_and_says_so(
    tiny_llama: Callable[..., Path], tokens: Any, monkeypatch: Any
) -> None:
    _, once = compress(tiny_llama(), recipes.gptq(group=32), tokens())
    monkeypatch.setattr(job, "memory_left", lambda device: 1000)
    _, twice = compress(tiny_llama(), recipes.gptq(group=32), tokens())
    assert once.asked["inputs"] == "as compressed so far" and "block before" in twice.asked["inputs"]
    same = [a.error == b.error for a, b in zip(once.rows, twice.rows)]
    assert all(same[:3]) and not all(same)  # q, k and v of the first block see the same inputs either way


@torch.no_grad()
def test_rows_also_pass_a_block_that_stays_as_it_is(tiny_llama: Callable[..., Path], tokens: Any) -> None:
    """With block 0 left alone, block 1 is rounded exactly as in a model in which only it is compressed: on block 0's outputs."""
    recipe = dataclasses.replace(recipes.gptq(bits=4, group=32), rules=(Rule("re:model\\.layers\\.0\\..*", ignore=True),))
    small, _ = compress(tiny_llama(), recipe, tokens())
    model = opened(tiny_llama())
    rows = embed(model.model, model.model.layers, tokens().ids, 4, False)
    for r in rows:
        r.hidden = run(model.model.layers[0], r.hidden, r.calls[0])
    source = open_checkpoint(tiny_llama())
    fill(model.model.layers[1], source, "model.layers.1", CPU)
    grid = sites(model.model.layers[1], "model.layers.1.")
    taps = discover(model.model.layers[1], grid, rows[0], 1)
    tap, known = next(iter(walk(model.model.layers[1], grid, taps, rows, 1, ("gram",))))
    name = tap.readers[0]
    found = Solved.of(grid[name].matrix(), plan(source, wiring(source.config), recipe).sites[name], known, None)
    assert torch.equal(decode(found.terms), small.get_submodule(name).weight)
