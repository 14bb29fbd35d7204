"""The native format: a Hugging Face directory whose compressed matrices are stored as their terms (docs/format.md).

It holds every sum of terms that there is, and is what other formats are made from.
"""

from collections.abc import Iterator, Mapping, Sequence
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
        def stream() -> Iterator[tuple[str, Tensor]]:
            for i, name in enumerate(source.model.metas):
                yield from flatten({name: source.terms(name)}, {name: source.scales(name)}).items()
                progress("writing", i + 1, len(source.model.metas))
            yield from ((name, source.tensor(name)) for name in source.model.kept)

        config = {**source.model.config, "quantization_config": fields(source.model)}
        if source.model.tied_head:
            config["tie_word_embeddings"] = False
        hf.write(out, stream(), config, source.model.companions)

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
                stored = {leaf: files.tensor(f"{site}.terms.{i}.{leaf}") for leaf in base.spec(meta)}
                placed(f"{site}.terms.{i}", meta, stored)
                found.append(base.load(meta, stored))
            return tuple(found)

        for site, found in metas.items():
            whole(site, found)
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
    shapes = {tuple(meta["shape"]) for meta in metas}
    coded = sum(meta["shape"][1] if meta["columns"] is None else meta["columns"] for meta in metas if meta["kind"] == "coded")
    if len(shapes) != 1 or coded < metas[0]["shape"][1]:
        told = ", ".join(f"{meta['kind']} of {meta['shape']}" for meta in metas[:4])
        raise BadRequest(f"The terms of {site} ({told}) do not make one matrix with a code for every weight; download it again.")


def placed(name: str, meta: Mapping[str, Json], stored: Mapping[str, Tensor]) -> None:
    """That the columns which a term names are columns of the matrix, and its rows end one after the other at the last entry.
    Raises BadRequest."""
    places = [stored[leaf].long() for leaf in ("columns", "places") if leaf in stored]
    sound = all(bool(((place >= 0) & (place < meta["shape"][1])).all()) for place in places)
    if "ends" in stored:
        ends = torch.nn.functional.pad(stored["ends"].long(), (1, 0))
        sound &= bool((ends.diff() >= 0).all()) and int(ends[-1]) == meta["count"]
    if not sound:
        raise BadRequest(f"{name} names places that its matrix does not have; the file is damaged, download the model again.")


def flatten(terms: Mapping[str, Terms], scales: Mapping[str, Params]) -> dict[str, Tensor]:
    """Terms by site name, and what is stored of the inputs: `<site>.terms.<i>.<leaf>` and `<site>.inputs.<leaf>`."""
    return {
        f"{name}.terms.{i}.{leaf}": t
        for name, ts in terms.items()
        for i, term in enumerate(ts)
        for leaf, t in term.tensors().items()
    } | {f"{name}.inputs.{leaf}": t.contiguous() for name, p in scales.items() for leaf, t in p.items()}


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
    return {name: config["kinds"][kind] for name, kind in config["sites"].items()}


def site_inputs(config: Mapping[str, Json]) -> dict[str, Activation]:
    """How inputs are quantized, by site."""
    online = config.get("inputs") or {"kinds": [], "sites": {}}
    parts = [index.from_dict(kind) for kind in online["kinds"]]
    return {name: parts[kind] for name, kind in online["sites"].items()}
