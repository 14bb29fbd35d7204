"""Where fuzzing begins: one small whole model for each way in which a format lays things out, and cases as bytes.

A case is the files of one directory in a fixed order, each behind its length; an empty one is not there.
"""

import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HF = ("config.json", "model.safetensors", "bitwright.json", "model.safetensors.index.json")
FILES = {
    "native": HF, "integers": HF, "floats": HF, "gptq": HF, "awq": HF,
    "gguf": ("model.gguf", "bitwright.json", "config.json"),
    "onnx": ("model.onnx", "bitwright.json", "config.json"),
}  # fmt: skip  # targets; "integers" and "floats" are the two sides of compressed-tensors
TINY = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 32, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip
FLAT = {**TINY, "hidden_size": 256, "intermediate_size": 8, "vocab_size": 8, "head_dim": 8}


def split(case: bytes, count: int) -> list[bytes]:
    """The files of a case, whatever its bytes."""
    parts = []
    for _ in range(count):
        size = int.from_bytes(case[:4], "little")
        parts.append(case[4 : 4 + size])
        case = case[4 + size :]
    return parts


def join(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def lay(case: bytes, target: str, root: Path) -> int:
    """A case as a directory; its size in bytes."""
    parts = split(case, len(FILES[target]))
    for name, part in zip(FILES[target], parts):
        (root / name).unlink(missing_ok=True)
        if part:
            (root / name).write_bytes(part)
    return sum(map(len, parts))


def recipes(target: str) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Recipe, format and shape of the models to begin with."""
    from bitwright import recipes as known
    from bitwright.corrections.outliers import Outliers
    from bitwright.export.gguf.blocks import BLOCKS
    from bitwright.export.gguf.matrices import GRIDS
    from bitwright.grids.integer import Integer
    from bitwright.grids.menu import Menu
    from bitwright.layout import Layout
    from bitwright.recipe import Recipe, Rule
    from bitwright.rounding.gptq import GPTQ
    from bitwright.rounding.quantease_outlier import QuantEaseOutlier

    def preset(name: str, **more: Any) -> Any:
        return known.get(name)(rounding="nearest", **more)

    def ints(levels: int, symmetric: bool = False, group: int | None = 16) -> Any:
        return Recipe(Integer(levels, symmetric), Layout(1, group))

    if target == "native":
        sums = replace(known.get("zeroquant-v2")(), layout=Layout(1, 16))
        few = tuple(replace(c, rank=2) if hasattr(c, "rank") else c for c in sums.corrections)
        spread = (Outliers(0.05), Outliers(0.05, by_output=True))
        menu = Recipe(Menu(("e2m1", "e2m1")), Layout(1, 16), corrections=spread[1:])
        columns = replace(ints(5), rounding=QuantEaseOutlier(0.1, term="columns"))
        found = [preset("nvfp4"), preset("w4a8", group=32), known.get("ptqtp")(), menu, columns]
        for recipe in [*found, replace(ints(16), corrections=spread[:1]), replace(sums, corrections=few)]:
            yield fitted(recipe), "native", TINY
        yield Recipe(GRIDS["Q4_K"], Layout(1, 32), rules=(Rule(r"re:.*\.(o|down)_proj", ignore=True),)), "native", FLAT
    elif target == "integers":
        for recipe in (preset("w4a8", group=32), ints(256), ints(16), ints(8, True, None)):
            yield recipe, "compressed-tensors", TINY
    elif target == "floats":
        for name in ("nvfp4", "mxfp4", "fp8"):
            yield preset(name), "compressed-tensors", TINY
    elif target in ("gptq", "awq"):
        yield ints(16), target, TINY
        if target == "gptq":
            yield ints(8), target, TINY
            yield replace(ints(16), rounding=GPTQ(groups="dynamic")), target, TINY  # in the order of g_idx
    elif target == "gguf":
        for name, grid in GRIDS.items():
            narrow = Rule(r"re:.*\.(o|down)_proj", ignore=True)  # rows of 8
            yield Recipe(grid, Layout(1, BLOCKS[name].group), rules=(narrow,), head=name in ("Q4_0", "Q6_K")), "gguf", FLAT
    else:
        for recipe, form in ((ints(16), "onnx"), (ints(256, True), "onnx-qdq")):
            yield recipe, form, TINY


def fitted(recipe: Any) -> Any:
    """On groups that 32 columns have."""
    cols = recipe.layout.cols
    return recipe if cols is None or cols <= 32 else replace(recipe, layout=replace(recipe.layout, cols=32))


def sown(target: str, corpus: Path, scratch: Path, calibration: Callable[[], Any]) -> int:
    """Writes the first cases, each with the document of bitwright and without; the size of the largest."""
    import bitwright

    largest = 0
    for i, (recipe, form, shape) in enumerate(recipes(target)):
        root = scratch / f"{target}-{i}"
        bitwright.compress(llama(shape, scratch), recipe, calibration(), out=root, form=form)
        if FILES[target] == HF:
            merge(root)
        parts = [(root / n).read_bytes() if (root / n).is_file() else b"" for n in FILES[target]]
        bare = [b"" if name == "bitwright.json" else part for name, part in zip(FILES[target], parts)]
        for kind, case in (("whole", join(parts)), ("bare", join(bare))):
            (corpus / f"seed-{i}-{kind}").write_bytes(case)
            largest = max(largest, len(case))
        shutil.rmtree(root)
    return largest


def merge(root: Path) -> None:
    """One file of weights, whatever their number."""
    from safetensors.torch import load_file, save_file

    tensors = {name: t for path in root.glob("*.safetensors") for name, t in load_file(path).items()}
    save_file(tensors, root / HF[1])
    (root / HF[3]).unlink(missing_ok=True)


def llama(shape: dict[str, Any], scratch: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, tie_word_embeddings=False, **shape))
    model.save_pretrained(scratch / "model")
    return scratch / "model"
