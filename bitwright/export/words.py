"""Directories of the GPTQ family: qweight, qzeros and scales in 32-bit words, turned [inp, out]. gptq.py and awq.py say how codes
lie in the words; what is around them is here, once. Cards: formats, sections 4 and 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright import index
from bitwright.activations.base import Activation
from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened
from bitwright.export.configuration import method
from bitwright.export.engines import fused_apart, tied
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.layout import Layout
from bitwright.progress import Progress
from bitwright.terms.base import Json, Spec, Terms
from bitwright.terms.coded import Coded, coded_meta


@runtime_checkable
class Packing(Protocol):
    """How one matrix lies in words."""

    method: str
    bits: tuple[int, ...]
    ordered: bool  # whether groups may follow a permutation of the inputs

    def spec(self, meta: Mapping[str, Any]) -> Spec: ...
    def tensors(self, term: Coded) -> dict[str, Tensor]: ...
    def term(self, meta: Mapping[str, Any], stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> Coded: ...
    def shape(self, stored: Mapping[str, Kept], bits: int) -> tuple[int, int]: ...
    def config(self, bits: int, group: int, symmetric: bool, ordered: bool, ignored: list[str]) -> dict[str, Json]: ...


@dataclass(frozen=True)
class Words:
    """A format of the family."""

    packing: Packing

    def refusal(self, model: Model) -> str | None:
        try:
            found = {name: self.scheme(name, metas) for name, metas in model.metas.items()}
        except BadRequest as why:
            return str(why)
        if model.inputs:
            return f"{self.packing.method} has no quantized inputs, which {next(iter(model.inputs))} has; leave out activations."
        if apart := fused_apart(model, found):
            return f"{apart[0]} and {apart[1]} are loaded as one matrix but have different schemes; give them the same recipe."
        if len(set(found.values())) > 1:
            return f"{self.packing.method} has one width and one group for all matrices; use one recipe for all, or another format."
        return tied(model, self.packing.method)

    def scheme(self, name: str, metas: Metas) -> tuple[int, int, bool, bool]:
        """Bits, group (-1: the row), symmetric, ordered. Raises BadRequest where the format cannot hold the matrix."""
        method, why = self.packing.method, None
        meta, grid = metas[0], index.from_dict(metas[0]["grid"]) if metas[0]["kind"] == "coded" else None
        rows, cols = Layout(*meta["layout"]).block(tuple(meta["shape"])) if grid is not None else (0, 0)
        bits = (grid.levels - 1).bit_length() if grid is not None else 0
        out, inp = meta["shape"]
        if len(metas) > 1 or not isinstance(grid, Integer):
            why = "its terms are not one matrix of integers; use an integer grid without corrections"
        elif bits not in self.packing.bits:
            why = f"its codes have {bits} bits and the format has {' and '.join(map(str, self.packing.bits))}; use one of these"
        elif grid.scale != Float("float16"):
            why = "its scales are not float16; set the type of the scales to float16"
        elif rows != 1:
            why = "its groups span rows; use groups along the inputs"
        elif meta["columns"] is not None and not self.packing.ordered:
            why = "its groups follow a permutation of the inputs; use static groups"
        elif inp * bits % 32 or out * bits % 32:
            why = f"{out} x {inp} codes of {bits} bits do not fill 32-bit words; ignore it, or use another width"
        if why:
            raise BadRequest(f"{method} cannot hold {name}: {why}, or write the native format.")
        return bits, -1 if meta["layout"][1] is None else cols, bool(grid and grid.symmetric), meta["columns"] is not None

    def remarks(self, model: Model) -> list[str]:
        bits, group, symmetric, ordered = self.scheme("", next(iter(model.metas.values())))
        marlin = bits in (4, 8) and group in (-1, 32, 64, 128) and (symmetric or bits == 4)
        taken = "Marlin" if marlin else "its slower exllama or generic kernels, if at all"
        return [f"vLLM takes {bits} bits in groups of {group} with {taken}{', permuted by g_idx' if ordered else ''}"]

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        self.scheme(name, metas)
        return 8 * sum(dtype.itemsize * prod(shape) for shape, dtype in self.packing.spec(metas[0]).values())

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return kept[1].itemsize * prod(kept[0])

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        names = list(source.model.metas)

        def stored(site: str) -> dict[str, Tensor]:
            (term,) = source.terms(site)
            return self.packing.tensors(term)  # type: ignore[arg-type]

        linears = {n.removesuffix(".weight") for n, (s, _) in source.model.kept.items() if n.endswith(".weight") and len(s) == 2}
        ignored = sorted(n for n in linears if "embed" not in n)
        config = self.packing.config(*self.scheme(names[0], source.model.metas[names[0]]), ignored)
        hf.write(
            out,
            hf.stream(source, stored, progress),
            {**source.model.config, "quantization_config": config},
            source.model.companions,
        )

    def recognises(self, root: Path) -> bool:
        return method(root) == self.packing.method

    def open(self, root: Path) -> Opened:
        files = hf.Files.of(root)
        config = files.config["quantization_config"]
        sites = [name.removesuffix(".qweight") for name in files.kept if name.endswith(".qweight")]
        metas: dict[str, Metas] = {site: self.told(site, config, files.below(site)) for site in sites}
        coded = {f"{site}.{leaf}" for site in sites for leaf in ("qweight", "qzeros", "scales", "g_idx")}
        kept = {n: k for n, k in files.kept.items() if n not in coded}
        model = Model(files.plain(), metas, kept, companions=files.companions())

        def terms(site: str) -> Terms:
            stored = {leaf: files.tensor(f"{site}.{leaf}") for leaf in files.below(site) if f"{site}.{leaf}" in coded}
            return (self.packing.term(metas[site][0], stored, config),)

        entries = Entry.list(files.kept, metas)
        return Opened(model, terms, files.tensor, entries, files.document())

    def told(self, site: str, config: Mapping[str, Any], stored: Mapping[str, Kept]) -> Metas:
        """The meta of a matrix from the configuration and the shapes that are stored. Raises BadRequest where these disagree."""
        bits, group = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size", -1))
        if bits not in self.packing.bits or not isinstance(group, int) or group == 0 or group < -1:
            raise BadRequest(f"{bits!r} bits in groups of {group!r} are not read by {self.packing.method}; dequantize it first.")
        try:
            out, inp = self.packing.shape(stored, bits)
            scale = str(stored["scales"][1]).removeprefix("torch.")
            grid = Integer(2**bits, scale=Float(scale))  # type: ignore[arg-type]
            ordered = bool(config.get("desc_act")) and "g_idx" in stored and group != -1
            meta = coded_meta((out, inp), grid, Layout(1, None if group == -1 else group), inp if ordered else None)
            wanted = self.packing.spec(meta)
        except (KeyError, ValueError, IndexError, BadRequest) as error:
            raise BadRequest(f"{site} does not fit its configuration ({error}); download the model again.") from None
        for leaf, (shape, dtype) in wanted.items():
            if leaf != "g_idx" and stored.get(leaf) != (shape, dtype):
                raise BadRequest(f"{site}.{leaf} should be {shape} of {dtype} but is {stored.get(leaf)}; download it again.")
        return (meta,)


def groups_of(term: Coded) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, inp] and zero points [groups, out] as whole numbers, scales [groups, out]; columns in the order of the inputs."""
    grid: Any = term.grid
    zero = term.params["zero"] if not grid.symmetric else torch.full_like(term.params["scale"], grid.levels // 2)
    codes = term.codes.int()
    if term.columns is not None:
        codes = torch.empty_like(codes).index_copy_(1, term.columns.long(), codes)
    return codes, zero.int().view(term.tiles).T.contiguous(), term.params["scale"].view(term.tiles).T.contiguous()
