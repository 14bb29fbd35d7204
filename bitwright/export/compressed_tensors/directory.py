"""compressed-tensors: what llm-compressor writes and vLLM and transformers load; written from any opened model, opened as one.

Matrices of one scheme are one config group. A group that is all the compressed matrices targets "Linear" and the others are
ignored by name; with several schemes every group names its matrices. Engines load q, k, v (and gate, up) as one matrix, so these
must share a scheme. Checked against release 0.20 and transformers 5.17; kernels as vLLM documents them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.activations.base import Activation
from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Entry, Kept, Metas, Model, Opened
from bitwright.export.compressed_tensors import inputs as online
from bitwright.export.compressed_tensors import tensors as fields
from bitwright.export.compressed_tensors.inputs import part_of
from bitwright.export.compressed_tensors.scheme import Scheme, metas_of, plain, scheme
from bitwright.export.configuration import method
from bitwright.export.engines import fused_apart, kernel, tied
from bitwright.grids.base import Params
from bitwright.progress import Progress
from bitwright.terms.base import Json, Terms

METHOD, VERSION = "compressed-tensors", "0.20.0"


@dataclass(frozen=True)
class CompressedTensors:
    """The format `compressed-tensors`."""

    def refusal(self, model: Model) -> str | None:
        try:
            found = schemes_of(model)
        except BadRequest as why:
            return str(why)
        if apart := fused_apart(model, found):
            return f"{apart[0]} and {apart[1]} are loaded as one matrix but have different schemes; give them the same recipe."
        return tied(model, "compressed-tensors")

    def remarks(self, model: Model) -> list[str]:
        return sorted({kernel(schemes_of(model)[name].args(), metas[0]["shape"]) for name, metas in model.metas.items()})

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        told = fields.spec(metas[0], scheme_of(name, metas, inputs).format) | online.spec(inputs)
        return 8 * sum(dtype.itemsize * prod(shape) for shape, dtype in told.values())

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return kept[1].itemsize * prod(kept[0])

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        schemes = schemes_of(source.model)

        def stored(site: str) -> dict[str, Tensor]:
            (term,) = source.terms(site)
            found = fields.tensors(term, schemes[site].format)  # type: ignore[arg-type]
            return found | online.tensors(source.model.inputs.get(site), source.scales(site))

        config = {**source.model.config, "quantization_config": quantization_config(source.model, schemes)}
        hf.write(out, hf.stream(source, stored, progress), config, source.model.companions)

    def recognises(self, root: Path) -> bool:
        return method(root) == METHOD

    def open(self, root: Path) -> Opened:
        files = hf.Files.of(root)
        config = files.config["quantization_config"]
        metas: dict[str, Metas] = {}
        inputs: dict[str, Activation] = {}
        formats: dict[str, str] = {}
        for site in {name.rpartition(".")[0]: None for name in files.kept if name.endswith(".weight_scale")}:
            group = group_of(site, config)
            formats[site] = str(group.get("format") or config.get("format"))
            metas[site] = told(site, group["weights"], formats[site], files.below(site))
            if args := group.get("input_activations"):
                stored = files.below(site).get("input_scale", ((), torch.float32))[1]
                inputs[site] = part_of(args, str(stored).removeprefix("torch."))
                if missing := [leaf for leaf in online.spec(inputs[site]) if leaf not in files.below(site)]:
                    raise BadRequest(f"{site} lacks {missing[0]}, which its configuration names; download the model again.")
        coded = {f"{site}.{leaf}" for site in metas for leaf in files.below(site) if leaf.startswith(("weight", "input_"))}
        kept = {n: k for n, k in files.kept.items() if n not in coded}

        def terms(site: str) -> Terms:
            told = fields.spec(metas[site][0], formats[site])
            found = fields.term(metas[site][0], {leaf: files.tensor(f"{site}.{leaf}") for leaf in told})
            if not torch.isfinite(found.decode()).all():
                raise BadRequest(f"{site} decodes to NaN or infinity; the file is damaged, download it again.")
            return (found,)

        def scales(site: str) -> Params:
            if site not in inputs:
                return {}
            return online.params(inputs[site], {leaf: files.tensor(f"{site}.{leaf}") for leaf in online.spec(inputs[site])})

        model = Model(files.plain(), metas, kept, inputs=inputs, companions=files.companions())
        return Opened(model, terms, files.tensor, Entry.list(files.kept, metas), files.document(), scales)


def schemes_of(model: Model) -> dict[str, Scheme]:
    return {name: scheme_of(name, metas, model.inputs.get(name)) for name, metas in model.metas.items()}


def scheme_of(name: str, metas: Metas, inputs: Activation | None) -> Scheme:
    """Raises BadRequest where a matrix has none."""
    one = scheme(metas, inputs)
    if isinstance(one, str):
        raise BadRequest(f"compressed-tensors cannot hold {name}: {one}, or write the native format.")
    return one


def quantization_config(model: Model, schemes: Mapping[str, Scheme]) -> dict[str, Json]:
    alike: dict[Scheme, list[str]] = {}
    for name, one in schemes.items():
        alike.setdefault(one, []).append(name)
    linears = {n.removesuffix(".weight") for n, (shape, _) in model.kept.items() if n.endswith(".weight") and len(shape) == 2}
    ignore = sorted({n for n in linears if "embed" not in n} | {"lm_head"})
    groups = {
        f"group_{i}": {
            "targets": ["Linear"] if len(alike) == 1 else names,
            "weights": one.args(),
            "input_activations": None if one.inputs is None else plain(one.inputs),
            "output_activations": None,
            "format": one.format,
        }
        for i, (one, names) in enumerate(alike.items())
    }
    formats = {one.format for one in alike}
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore if len(alike) == 1 else [],
        "kv_cache_scheme": None,
    }


def group_of(site: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config group that a matrix belongs to: by name, by regular expression, else by its class. Raises BadRequest."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) and isinstance(g.get("weights"), dict) for g in groups.values()):
        raise BadRequest("The quantization_config has no config_groups that can be read; download config.json again.")
    for exact in (True, False):
        for group in groups.values():
            for target in group.get("targets", []):
                if exact and (site == target or (target.startswith("re:") and re.match(target[3:], site))):
                    return group
                if not exact and not target.startswith("re:") and "." not in target:
                    return group
    raise BadRequest(f"No config group targets {site}, which is stored quantized; the configuration and the files disagree.")


def told(site: str, args: Mapping[str, Any], form: str, stored: Mapping[str, Kept]) -> Metas:
    """The metas of a matrix from its arguments and the shapes that are stored. Raises BadRequest where these disagree."""
    if "weight_g_idx" in stored:
        raise BadRequest(f"{site} has groups in activation order (weight_g_idx), which are no longer read; dequantize it first.")
    codes = "weight_packed" if "weight_packed" in stored else "weight"
    if codes not in stored:
        raise BadRequest(f"{site} has scales but no weight; the files are damaged, download them again.")
    (rows, *rest), bits = stored[codes][0], int(args.get("num_bits") or 8)
    across = stored["weight_scale"][0][-1]
    inp = rest[0] if rest else 0
    if codes == "weight_packed":
        group = args.get("group_size")
        inp = across * group if group and group > 0 else inp * (8 * stored[codes][1].itemsize) // bits
    try:
        metas = metas_of(args, form, (rows, inp), str(stored["weight_scale"][1]).removeprefix("torch."))
        wanted = fields.spec(metas[0], form)
    except ValueError as error:
        raise BadRequest(f"{site} does not fit its configuration ({error}); download the model again.") from None
    for leaf, (shape, dtype) in wanted.items():
        if leaf not in stored or prod(stored[leaf][0]) != prod(shape) or stored[leaf][1] != dtype:
            has = stored.get(leaf)
            raise BadRequest(f"{site}.{leaf} should be {shape} of {dtype} by the configuration but is {has}; download it again.")
    return metas
