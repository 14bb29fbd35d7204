"""A GGUF file of a Llama model opened: block types as terms, floats as they are, rows of q and k in the order of transformers."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened
from bitwright.export.gguf import llama, matrices, rope
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.container import Container, Info
from bitwright.export.gguf.llama import Place
from bitwright.terms.base import Terms

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def opened(file: Container, root: Path) -> Opened:
    """`root`: the file, or its directory, whose other files go with it. Raises BadRequest, in one sentence, for what is missing,
    does not fit, or has a type that is not read."""
    shapes = {name: info.shape for name, info in file.tensors.items()}
    config = llama.read(file.metadata, shapes, divisors(file))
    found: dict[str, Place] = {}
    metas: dict[str, Metas] = {}
    kept: dict[str, Kept] = {}
    for place in llama.sizes(llama.configured(config), llama.HEAD in shapes).places():
        info = looked_up(file, place)
        found[place.name] = place
        if info.type in FLOATS:
            kept[place.name] = place.shape, FLOATS[info.type]
        elif info.type in matrices.GRIDS and len(place.shape) == 2:
            metas[place.name.removesuffix(".weight")] = (matrices.read_as(info.type, (place.shape[0], place.shape[1])),)
        else:
            raise BadRequest(
                f"{place.stored} of {file.path} has the type {info.type}, which is not read as terms yet; "
                "make the file anew in a type such as Q4_K or Q8_0."
            )
    if odd := sorted(set(shapes) - {place.stored for place in found.values()} - {rope.TENSOR}):
        raise BadRequest(f"{file.path} has the tensor {odd[0]!r}, which no Llama model has; it would be lost, use another model.")

    def terms(site: str) -> Terms:
        place = found[f"{site}.weight"]
        name = file.tensors[place.stored].type
        leaves = BLOCKS[name].unpack(file.data(place.stored))
        if (order := place.order()) is not None:
            leaves = {leaf: x[torch.argsort(order)] for leaf, x in leaves.items()}
        try:
            term = matrices.term(name, leaves)
        except BadRequest as error:
            raise BadRequest(f"{place.stored} is damaged: {error}; download the file again.") from None
        if not torch.isfinite(term.decode()).all():
            raise BadRequest(f"{place.stored} decodes to NaN or infinity; the file is damaged, download it again.")
        return (term,)

    def tensor(name: str) -> Tensor:
        place = found[name]
        stored = plain(file, file.tensors[place.stored])
        return stored if (order := place.order()) is None else stored[torch.argsort(order)]

    tied_head = "lm_head" if "model.embed_tokens" in metas and llama.HEAD not in shapes else None
    beside = hf.beside(root) if root.is_dir() else []
    model = Model(config, metas, kept, tied_head, companions=beside)
    return Opened(model, terms, tensor, entries(file, found, metas), hf.document(root) if root.is_dir() else {})


def entries(file: Container, found: Mapping[str, Place], metas: Mapping[str, Metas]) -> list[Entry]:
    """All tensors of the model. The divisors of rotary frequencies are a part of its configuration and no weights."""
    sites = {place.stored: site for name, place in found.items() if (site := name.removesuffix(".weight")) in metas}
    infos = (info for info in file.tensors.values() if info.name != rope.TENSOR)
    return [Entry(info.name, sites.get(info.name), info.type, info.shape, info.nbytes or 0) for info in infos]


def looked_up(file: Container, place: Place) -> Info:
    info = file.tensors.get(place.stored)
    if info is None:
        raise BadRequest(f"{file.path} lacks the tensor {place.stored}, which its metadata promise; download it again.")
    if info.shape != place.shape:
        raise BadRequest(
            f"{place.stored} of {file.path} is {info.shape} and should be {place.shape} by the metadata; download it again."
        )
    return info


def divisors(file: Container) -> Tensor | None:
    info = file.tensors.get(rope.TENSOR)
    if info is None:
        return None
    if info.type not in FLOATS or len(info.shape) != 1:
        raise BadRequest(f"{rope.TENSOR} of {file.path} is {info.type} of shape {info.shape}, not a vector; use another file.")
    return plain(file, info).float()


def plain(file: Container, info: Info) -> Tensor:
    return file.data(info.name).clone().view(FLOATS[info.type]).reshape(info.shape)
