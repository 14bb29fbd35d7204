"""The native format: a Hugging Face directory whose compressed matrices are stored as their terms (docs/format.md).

It holds every sum of terms that there is, and is what other formats are made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright import index
from bitwright.activations import base as activations
from bitwright.activations.base import Activation
from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened
from bitwright.export.configuration import method
from bitwright.grids.base import Params
from bitwright.progress import Progress
from bitwright.terms import base
from bitwright.terms.base import Json, Terms

METHOD = "bitwright"
FORMAT = 2


@dataclass(frozen=True)
class Native:
    """The format `native`."""

    def refusal(self, model: Model) -> str | None:
        return None

    def remarks(self, model: Model) -> list[str]:
        return []

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        return base.stored_bits(tuple(metas)) + activations.stored_bits(inputs)

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return kept[1].itemsize * prod(kept[0])

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        config = {**source.model.config, "quantization_config": fields(source.model)}
        if source.model.tied_head:
            config["tie_word_embeddings"] = False
        stream = hf.stream(source, lambda site: leaves(source.terms(site), source.scales(site)), progress)
        hf.write(out, stream, config, source.model.companions)

    def recognises(self, root: Path) -> bool:
        return method(root) == METHOD

    def open(self, root: Path) -> Opened:
        files = hf.Files.of(root)
        config = files.config["quantization_config"]
        metas, tied_head = site_metas(config), config["tied_head"]
        plain = files.plain()
        if tied_head:
            plain["tie_word_embeddings"] = True
        kept = {n: k for n, k in files.kept.items() if ".terms." not in n and ".inputs." not in n}
        inputs = site_inputs(config)

        def terms(site: str) -> Terms:
            found = []
            for i, meta in enumerate(metas[site]):
                found.append(base.load(meta, {leaf: files.tensor(f"{site}.terms.{i}.{leaf}") for leaf in base.spec(meta)}))
            if not torch.isfinite(base.decode(tuple(found))).all():
                raise BadRequest(f"{site} decodes to NaN or infinity; the file is damaged, download it again.")
            return tuple(found)

        for site, found in metas.items():
            for i, meta in enumerate(found):
                for leaf, told in base.spec(meta).items():
                    if (has := files.kept.get(f"{site}.terms.{i}.{leaf}")) != told:
                        raise BadRequest(f"{site}.terms.{i}.{leaf} should be {told} but is {has}; download the model again.")

        def scales(site: str) -> Params:
            return {leaf: files.tensor(f"{site}.inputs.{leaf}") for leaf in inputs[site].leaves} if site in inputs else {}

        model, entries = Model(plain, metas, kept, tied_head, inputs, files.companions()), Entry.list(files.kept, metas)
        return Opened(model, terms, files.tensor, entries, files.document(), scales)


def whole(site: str, metas: Metas) -> None:
    """That the terms of a matrix have one shape and every input has codes; else a few factors or places, which take next to no
    bytes, could claim a matrix of any size. Raises BadRequest."""
    inner = [meta["inner"] if meta["kind"] == "rows" else meta for meta in metas]
    shapes = {tuple(meta["shape"]) for meta in (*metas, *inner)}
    coded = sum(meta["shape"][1] if meta["columns"] is None else meta["columns"] for meta in inner if meta["kind"] == "coded")
    if len(shapes) != 1 or coded < metas[0]["shape"][1]:
        told = ", ".join(f"{meta['kind']} of {meta['shape']}" for meta in metas[:4])
        raise BadRequest(f"The terms of {site} ({told}) do not make one matrix with a code for every weight; download it again.")


def flatten(terms: Mapping[str, Terms], scales: Mapping[str, Params]) -> dict[str, Tensor]:
    """The tensors of matrices by name."""
    return {f"{name}.{leaf}": t for name, ts in terms.items() for leaf, t in leaves(ts, scales.get(name, {})).items()}


def leaves(terms: Terms, scales: Params) -> dict[str, Tensor]:
    """What is stored of one matrix and its inputs: `terms.<i>.<leaf>` and `inputs.<leaf>`."""
    found = {f"terms.{i}.{leaf}": t for i, term in enumerate(terms) for leaf, t in term.tensors().items()}
    return found | {f"inputs.{leaf}": t.contiguous() for leaf, t in scales.items()}


def fields(model: Model) -> dict[str, Json]:
    return quantization_config(model.metas, model.tied_head, model.inputs)


def quantization_config(
    metas: Mapping[str, Sequence[Mapping[str, Json]]], tied_head: str | None, inputs: Mapping[str, Activation]
) -> dict[str, Json]:
    """What a loader must know. Equal lists of terms are written once and pointed at. Quantized inputs make it format 2."""
    kinds: list[Any] = []
    sites = {}
    for name, found in metas.items():
        if list(found) not in kinds:
            kinds.append(list(found))
        sites[name] = kinds.index(list(found))
    told: dict[str, Json] = {"quant_method": METHOD, "format": 2 if inputs else 1, "kinds": kinds, "sites": sites}
    told["tied_head"] = tied_head
    if inputs:
        parts = list(dict.fromkeys(inputs.values()))
        told["inputs"] = {
            "kinds": [index.to_dict(part) for part in parts],
            "sites": {name: parts.index(part) for name, part in inputs.items()},
        }
    return told


def site_metas(config: Mapping[str, Json]) -> dict[str, list[dict[str, Json]]]:
    """Inverse of `quantization_config`. Raises BadRequest on a format of the future."""
    if config["format"] > FORMAT:
        raise BadRequest(f"This directory has format {config['format']}; this bitwright reads up to {FORMAT}, update it.")
    found = {name: config["kinds"][kind] for name, kind in config["sites"].items()}
    for site, metas in found.items():
        whole(site, metas)
    return found


def site_inputs(config: Mapping[str, Json]) -> dict[str, Activation]:
    """How inputs are quantized, by site."""
    online = config.get("inputs") or {"kinds": [], "sites": {}}
    parts = [index.from_dict(kind) for kind in online["kinds"]]
    return {name: parts[kind] for name, kind in online["sites"].items()}
