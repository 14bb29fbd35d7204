"""The native format: a Hugging Face directory whose compressed matrices are stored as their terms (docs/format.md).

It holds every sum of terms that there is, and is what other formats are made from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened
from bitwright.progress import Progress
from bitwright.terms import base
from bitwright.terms.base import Json, Terms

METHOD = "bitwright"
FORMAT = 1


@dataclass(frozen=True)
class Native:
    """The format `native`."""

    def refusal(self, model: Model) -> str | None:
        return None

    def remarks(self, model: Model) -> list[str]:
        return []

    def bits(self, name: str, metas: Metas) -> int:
        return base.stored_bits(tuple(metas))

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return kept[1].itemsize * prod(kept[0])

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        def stream() -> Iterator[tuple[str, Tensor]]:
            for i, name in enumerate(source.model.metas):
                yield from flatten({name: source.terms(name)}).items()
                progress("writing", i + 1, len(source.model.metas))
            yield from ((name, source.tensor(name)) for name in source.model.kept)

        config = {**source.model.config, "quantization_config": quantization_config(source.model.metas, source.model.tied_head)}
        if source.model.tied_head:
            config["tie_word_embeddings"] = False
        hf.write(out, stream(), config, list(source.companions))

    def recognises(self, root: Path) -> bool:
        return hf.method(root) == METHOD

    def open(self, root: Path) -> Opened:
        files = hf.Files.of(root)
        config = files.config["quantization_config"]
        metas, tied_head = site_metas(config), config["tied_head"]
        plain = files.plain()
        if tied_head:
            plain["tie_word_embeddings"] = True
        kept = {n: k for n, k in files.kept.items() if ".terms." not in n}

        def terms(site: str) -> Terms:
            return tuple(
                base.load(meta, {leaf: files.tensor(f"{site}.terms.{i}.{leaf}") for leaf in base.spec(meta)})
                for i, meta in enumerate(metas[site])
            )

        model, entries = Model(plain, metas, kept, tied_head, files.companions()), Entry.list(files.kept, metas)
        return Opened(model, terms, files.tensor, entries, files.companions(), files.document())


def flatten(terms: Mapping[str, Terms]) -> dict[str, Tensor]:
    """Terms by site name as named tensors: `<site>.terms.<i>.<leaf>`."""
    return {
        f"{name}.terms.{i}.{leaf}": t
        for name, ts in terms.items()
        for i, term in enumerate(ts)
        for leaf, t in term.tensors().items()
    }


def quantization_config(metas: Mapping[str, Sequence[Mapping[str, Json]]], tied_head: str | None) -> dict[str, Json]:
    """What a loader must know. Equal lists of terms are written once and pointed at."""
    kinds: list[Any] = []
    sites = {}
    for name, found in metas.items():
        if list(found) not in kinds:
            kinds.append(list(found))
        sites[name] = kinds.index(list(found))
    return {"quant_method": METHOD, "format": FORMAT, "kinds": kinds, "sites": sites, "tied_head": tied_head}


def site_metas(config: Mapping[str, Json]) -> dict[str, list[dict[str, Json]]]:
    """Inverse of `quantization_config`. Raises BadRequest on a format of the future."""
    if config["format"] > FORMAT:
        raise BadRequest(f"This directory has format {config['format']}; this bitwright reads up to {FORMAT}, update it.")
    return {name: config["kinds"][kind] for name, kind in config["sites"].items()}
