"""Filling the statistics store: one walk of the float model over the data, with a pause at every tap and nothing rounded."""

from collections.abc import Sequence
from typing import Any

import torch

from bitwright.calibrate.base import Data
from bitwright.calibrate.stats import Gram, Known
from bitwright.calibrate.store import HEAD, Store
from bitwright.calibrate.stream import Rows, discover, embed, walk, walk_twice
from bitwright.checkpoint import Checkpoint, fill, skeleton
from bitwright.progress import Progress
from bitwright.sites import sites
from bitwright.wiring import Wiring


def collect(
    store: Store,
    source: Checkpoint,
    wiring: Wiring,
    data: Data,
    needs: Sequence[str],
    batch: int,
    device: torch.device,
    progress: Progress,
    twice: bool = False,
) -> None:
    """One walk of the float model; blocks that an interrupted walk has finished are only passed through."""
    model: Any = skeleton(source.config)
    blocks = wiring.block_list(model)
    for name in (*wiring.embed, *wiring.norm):
        fill(model.get_submodule(name), source, name)
    stream = [r.to(device) for r in embed(model.base_model, blocks, data.inputs, batch, "cross" in needs, wiring.call)]
    for i, block in enumerate(blocks):
        progress("collecting statistics", i, len(blocks))
        prefix = f"{wiring.blocks}.{i}."
        fill(block, source, prefix[:-1], device)
        here = sites(block, prefix)
        taps, missing = discover(block, here, stream[0], i), () if store.has(i, needs) else needs
        for tap, known in (walk_twice if twice else walk)(block, here, taps, stream, i, missing):
            if missing:
                store.put(tap, known)
        store.close(i, taps)
        block.to("meta")
    store.put(HEAD, head_moments(model, wiring, stream))
    progress("collecting statistics", len(blocks), len(blocks))


def head_moments(model: Any, wiring: Wiring, stream: Sequence[Rows]) -> Known:
    """Second moments of what the output head reads."""
    gram: Gram | None = None
    for r in stream:
        states = wiring.states(model, r.hidden).flatten(0, -2)
        gram = gram or Gram(states.shape[-1])
        gram.add(states)
    return Known() if gram is None else Known({"gram": gram.value()})
