"""The document inside a graph file: what turns its tensors back into terms; and a model opened from these.

A graph alone does not say what a level, a fit or a group of ours was, so the file carries the metas and the configuration as
JSON. Whoever only runs the model never reads it. Entries are the stored tensors; numbers that belong to the graph itself
(shapes, signs, rotary frequencies: some kilobytes) are no weights and stay out of the ledger.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened
from bitwright.export.graph import llama
from bitwright.export.graph.matrix import Matrix, Style, matrix, restore, size
from bitwright.export.native import fields, site_metas
from bitwright.terms.base import Terms

KEY = "bitwright"  # under which the document stands in the file
FORMAT = 1
KINDS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8")  # of kept tensors


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a file: type by name, shape, how many bytes there are, and these when they are asked for."""

    kind: str
    shape: tuple[int, ...]
    size: int
    data: Callable[[], bytes]

    def bytes(self) -> Tensor:
        return torch.frombuffer(bytearray(self.data()), dtype=torch.uint8)


def refusal(model: Model, style: Style, title: str) -> str | None:
    """One sentence with cause and remedy where there is no such file of a model."""
    if why := llama.refusal(model):
        return f"{title} cannot hold this model: {why}."
    if model.inputs:
        return f"{title} is written without quantized inputs, which {next(iter(model.inputs))} has; leave out activations."
    for name, metas in model.metas.items():
        if isinstance(found := matrix(metas, style), str):
            return unheld(name, found, title)
    for name, (_, dtype) in model.kept.items():
        if str(dtype).removeprefix("torch.") not in KINDS:
            return f"{title} has no place for {name}, which is of {dtype}; write the native format."
    return None


def unheld(name: str, why: str, title: str) -> str:
    return f"{title} cannot hold {name}: {why}, or write the native format."


def bits(name: str, metas: Metas, style: Style, title: str) -> int:
    """Stored bits of a matrix. Raises BadRequest where there is no place for it: plans ask for the price first."""
    found = matrix(metas, style)
    if isinstance(found, str):
        raise BadRequest(unheld(name, found, title))
    return 8 * found.bytes()


def matrices(model: Model, style: Style) -> dict[str, Matrix]:
    """Assumes that `refusal` is None."""
    found = {name: matrix(metas, style) for name, metas in model.metas.items()}
    return {name: m for name, m in found.items() if isinstance(m, Matrix)}


def limits(model: Model, title: str) -> list[str]:
    """Remarks on what the graph does not do."""
    most = llama.configuration(model).max_position_embeddings
    return [f"the {title} graph computes all tokens on every call (no cache of keys and values yet), {most} at most"]


def widened(matrices: Mapping[str, Matrix]) -> list[str]:
    """Remarks on codes that take more bits here than they need."""
    wide = sorted({(m.levels, m.bits) for m in matrices.values() if m.kind != "float8" and m.levels <= 2 ** (m.bits - 1)})
    return [f"codes of {levels} levels take {bits} bits in this file" for levels, bits in wide]


def text(model: Model, style: Style) -> str:
    """The document of a model."""
    coded = fields(model)
    return json.dumps({"format": FORMAT, "style": style, "config": model.config, "coded": coded, "kept": list(model.kept)})


def opened(written: str, tensors: Mapping[str, Stored], path: Path) -> Opened:
    """A model from its document and its tensors. Raises BadRequest where they do not fit each other."""
    try:
        told = json.loads(written)
        if told["format"] > FORMAT:
            raise BadRequest(f"{path} has format {told['format']}; this bitwright reads up to {FORMAT}, update it.")
        metas: Mapping[str, Metas] = site_metas(told["coded"])
        found = {name: matrix(m, told["style"]) for name, m in metas.items()}
        names, config = list(told["kept"]), dict(told["config"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadRequest(f"The document of bitwright in {path} is damaged; export it again.") from None
    entries, kept = [], {}
    for site, m in found.items():
        if isinstance(m, str):
            raise BadRequest(f"{site} in {path} is not to be read: {m}.")
        for leaf, (kind, shape) in m.spec().items():
            entries.append(entry(tensors, f"{site}.{leaf}", site, (kind, shape), path))
    for name in names:
        one = tensors.get(name)
        if one is None or one.kind not in KINDS:
            raise BadRequest(f"{path} lacks the tensor {name}; it is damaged, export it again.")
        entries.append(entry(tensors, name, None, (one.kind, one.shape), path))
        kept[name] = one.shape, getattr(torch, one.kind)

    def terms(site: str) -> Terms:
        m: Any = found[site]
        return (restore(metas[site][0], m, {leaf: tensors[f"{site}.{leaf}"].bytes() for leaf in m.spec()}),)

    def tensor(name: str) -> Tensor:
        shape, dtype = kept[name]
        return tensors[name].bytes().view(dtype).reshape(shape)

    root = hf.Files(path.parent, {}, {}, {})
    model = Model(config, metas, kept, companions=root.companions())
    return Opened(model, terms, tensor, entries, root.document())


def entry(tensors: Mapping[str, Stored], name: str, site: str | None, wanted: tuple[str, tuple[int, ...]], path: Path) -> Entry:
    one, (kind, shape) = tensors.get(name), wanted
    if one is None or (one.kind, one.shape) != wanted or one.size != size(kind, shape):
        raise BadRequest(f"{name} in {path} is not {kind} of {list(shape)} as it should be; the file is damaged, export it again.")
    return Entry(name, site, kind, shape, size(kind, shape))


def bytes_of(kept: Kept) -> int:
    return size(str(kept[1]).removeprefix("torch."), kept[0])


def beside(out: Path, source: Opened) -> None:
    """What lies beside a graph: tokenizer and the like, and the configuration as it was."""
    for path in source.model.companions:
        shutil.copy(path, out / path.name)
    (out / "config.json").write_text(json.dumps(source.model.config, indent=1))
