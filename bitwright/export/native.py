"""The native format: a Hugging Face directory whose compressed matrices are stored as their terms (docs/format.md).

It holds every sum of terms that there is, and is what other formats are made from.
"""

from collections import Counter
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
from bitwright.checkpoint import size_in_bytes
from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened, open_compressed
from bitwright.export.configuration import method
from bitwright.grids.base import Params
from bitwright.progress import Progress
from bitwright.terms import base
from bitwright.terms.base import Json, Terms
from bitwright.terms.widely_linear import widely_linear_meta

METHOD = "bitwright"
FORMAT = 2


@dataclass(frozen=True)
class Native:
    """The format `native`; with a `size` in bytes, of a stack only what fits, and nothing else of it is read."""

    size: int | None = None

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
        metas, stack, tied_head = site_metas(config), site_stack(config), config["tied_head"]
        plain = files.plain()
        if tied_head:
            plain["tie_word_embeddings"] = True
        kept = {n: k for n, k in files.kept.items() if ".terms." not in n and ".inputs." not in n}
        inputs = site_inputs(config)
        every = specs(metas)
        if self.size is not None:
            metas, stack = within(self.size, metas, stack, kept, inputs, root)
        wanted = specs(metas)
        for name, told in wanted.items():
            if (has := files.kept.get(name)) != told:
                raise BadRequest(f"{name} should be {told} but is {has}; download the model again.")

        def terms(site: str) -> Terms:
            names = [{leaf: f"{site}.terms.{i}.{leaf}" for leaf in base.spec(meta)} for i, meta in enumerate(metas[site])]
            read = files.tensors(name for own in names for name in own.values())
            found = [base.load(meta, {leaf: read[n] for leaf, n in own.items()}) for meta, own in zip(metas[site], names)]
            if not torch.isfinite(base.decode(tuple(found))).all():
                raise BadRequest(f"{site} decodes to NaN or infinity; the file is damaged, download it again.")
            return tuple(found)

        def scales(site: str) -> Params:
            return {leaf: files.tensor(f"{site}.inputs.{leaf}") for leaf in inputs[site].leaves} if site in inputs else {}

        model = Model(plain, metas, kept, tied_head, inputs, files.companions(), stack)
        there = {n: told for n, told in files.kept.items() if n in wanted or n not in every}
        return Opened(model, terms, files.tensor, Entry.list(there, metas), files.document(), scales)


def whole(site: str, metas: Metas) -> None:
    """That the terms of a matrix have one shape and every input has codes; else a few factors or places, which take next to no
    bytes, could claim a matrix of any size. Raises BadRequest."""
    inner = [meta["inner"] if meta["kind"] == "rows" else meta for meta in metas]
    pairs = [meta["inner"] for meta in metas if meta["kind"] == "widely_linear"]
    shapes = {tuple(meta["shape"]) for meta in (*metas, *inner, *map(widely_linear_meta, pairs))}
    full = (meta for meta in inner if meta["kind"] in ("coded", "sign_lowrank"))
    coded = sum(meta["shape"][1] if meta.get("columns") is None else meta["columns"] for meta in full)
    coded += sum(meta["shape"][1] // 2 for meta in pairs if meta["kind"] == "coded" and meta["columns"] is None)
    if len(shapes) != 1 or coded < metas[0]["shape"][1]:
        told = ", ".join(f"{meta['kind']} of {meta['shape']}" for meta in metas[:4])
        raise BadRequest(f"The terms of {site} ({told}) do not make one matrix with a code for every weight; download it again.")


def specs(metas: Mapping[str, Metas]) -> base.Spec:
    """The tensors of all terms by name, as they should be."""
    return {
        f"{site}.terms.{i}.{leaf}": told
        for site, found in metas.items()
        for i, meta in enumerate(found)
        for leaf, told in base.spec(meta).items()
    }


def flatten(terms: Mapping[str, Terms], scales: Mapping[str, Params]) -> dict[str, Tensor]:
    """The tensors of matrices by name."""
    return {f"{name}.{leaf}": t for name, ts in terms.items() for leaf, t in leaves(ts, scales.get(name, {})).items()}


def leaves(terms: Terms, scales: Params) -> dict[str, Tensor]:
    """What is stored of one matrix and its inputs: `terms.<i>.<leaf>` and `inputs.<leaf>`."""
    found = {f"terms.{i}.{leaf}": t for i, term in enumerate(terms) for leaf, t in term.tensors().items()}
    return found | {f"inputs.{leaf}": t.contiguous() for leaf, t in scales.items()}


def fields(model: Model) -> dict[str, Json]:
    return quantization_config(model.metas, model.tied_head, model.inputs, model.stack)


def quantization_config(
    metas: Mapping[str, Sequence[Mapping[str, Json]]],
    tied_head: str | None,
    inputs: Mapping[str, Activation],
    stack: Sequence[str] = (),
) -> dict[str, Json]:
    """What a loader must know. Equal lists of terms are written once and pointed at. Quantized inputs make it format 2."""
    kinds: list[Any] = []
    sites = {}
    for name, found in metas.items():
        if list(found) not in kinds:
            kinds.append(list(found))
        sites[name] = kinds.index(list(found))
    told: dict[str, Json] = {"quant_method": METHOD, "format": 2 if inputs else 1, "kinds": kinds, "sites": sites}
    told |= {"tied_head": tied_head} | ({"stack": list(stack)} if stack else {})
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


def site_stack(config: Mapping[str, Json]) -> tuple[str, ...]:
    """The matrices of a stack in the order in which they get one term more; () where there is no stack. Raises BadRequest where the
    order is not one of their terms."""
    stack = tuple(config.get("stack") or ())
    if stack and Counter(stack) != Counter({name: len(metas) - 1 for name, metas in site_metas(config).items()}):
        raise BadRequest("The stack does not name every matrix once for each of its terms but the first; download the model again.")
    return stack


def open_sized(root: Path, size: int | str) -> Opened:
    """The largest prefix of a stack that takes at most so many bytes ("9MB"). Raises BadRequest where there is no stack, or even
    its least is larger."""
    most = size_in_bytes(size) if isinstance(size, str) else size
    if not Native().recognises(root):
        raise one_size(root)
    return open_compressed(root, Native(most))


def one_size(root: Path) -> BadRequest:
    return BadRequest(f"{root} has one size only; `bitwright compress MODEL -o OUT --recipe bitstack` makes one that has many.")


def within(
    size: int, metas: dict[str, Any], stack: Sequence[str], kept: Mapping[str, Kept], inputs: Mapping[str, Activation], root: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The terms of the largest prefix of a stack that takes at most `size` bytes with all that is kept, and that prefix. Raises
    BadRequest where there is no stack, or even one term of every matrix takes more."""
    if not stack:
        raise one_size(root)
    native = Native()
    taken = sum(native.bits(name, found[:1], inputs.get(name)) for name, found in metas.items()) // 8
    taken += sum(native.kept_bytes(name, told) for name, told in kept.items())
    if size < taken:
        raise BadRequest(f"{size:,} bytes are too few for {root}: it takes at least {taken:,}; raise the size.")
    count = dict.fromkeys(metas, 1)
    for at, name in enumerate(stack):
        taken += native.bits(name, metas[name][count[name] : count[name] + 1]) // 8
        if taken > size:
            stack = stack[:at]
            break
        count[name] += 1
    return {name: found[: count[name]] for name, found in metas.items()}, tuple(stack)


def site_inputs(config: Mapping[str, Json]) -> dict[str, Activation]:
    """How inputs are quantized, by site."""
    online = config.get("inputs") or {"kinds": [], "sites": {}}
    parts = [index.from_dict(kind) for kind in online["kinds"]]
    return {name: parts[kind] for name, kind in online["sites"].items()}
