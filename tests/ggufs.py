"""What the tests of GGUF models share: recipes by type, small shapes, models without a compressed matrix."""

from pathlib import Path
from typing import Any

from bitwright.export.base import Model, Opened, format_of
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.matrices import GRIDS
from bitwright.export.gguf.model import Gguf
from bitwright.export.hf import configuration
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.terms.coded import coded_meta

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def recipe(name: str, **more: Any) -> Recipe:
    return Recipe(GRIDS[name], Layout(1, BLOCKS[name].group), name=name, **more)


def meta(grid: Any, group: int | None, shape: tuple[int, int] = (16, 256)) -> Any:
    return coded_meta(shape, grid, Layout(1, group))


def opened(root: Path) -> Opened:
    form = format_of(root)
    assert isinstance(form, Gguf)
    return form.open(root)


def floats(root: Path) -> Opened:
    """A model without a compressed matrix, as `write` takes it."""
    from bitwright.checkpoint import open_checkpoint

    source = open_checkpoint(root)
    kept = {name: (source.shapes[name], source.dtypes[name]) for name in source.shapes}
    return Opened(Model(configuration(root), {}, kept), lambda _: (), source.tensor, [])
