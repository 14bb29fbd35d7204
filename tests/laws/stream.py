"""The stream: one pass with pauses equals running the block again before every tap; taps are what shares an input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitwright.calibrate.stats import Gram
from bitwright.calibrate.stream import discover, embed, run, walk
from bitwright.checkpoint import open_checkpoint, skeleton
from bitwright.road import fill
from bitwright.sites import sites

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
