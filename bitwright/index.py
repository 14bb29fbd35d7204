"""The index: name -> "module:Class" of every part, as plain strings, imported when asked for. The laws walk over it.

Adding a method is one file and one line here. Names are unique over all rooms, so that a recipe file can say `use = "mse"`.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bitwright.errors import BadRequest

PARTS: dict[str, dict[str, str]] = {
    "grids": {
        "integer": "bitwright.grids.integer:Integer",
        "offset": "bitwright.grids.offset:Offset",
        "table": "bitwright.grids.table:Table",
        "menu": "bitwright.grids.menu:Menu",
        "trit-planes": "bitwright.grids.trit_planes:TritPlanes",
        "ragged": "bitwright.grids.ragged:Ragged",
        "compand": "bitwright.grids.compand:Compand",
        "nested": "bitwright.grids.nested:Nested",
        "dual-binary": "bitwright.grids.dual_binary:DualBinary",
        "separable": "bitwright.grids.separable:Separable",
        "codebook": "bitwright.grids.codebook:Codebook",
        "additive": "bitwright.grids.additive:Additive",
        "points": "bitwright.grids.points:Points",
    },
    "layouts": {
        "layout": "bitwright.layout:Layout",
    },
    "fits": {
        "absmax": "bitwright.grids.fit:AbsMax",
        "mse": "bitwright.grids.fit:Mse",
        "imatrix": "bitwright.grids.fit:Imatrix",
        "sigma": "bitwright.grids.sigma:Sigma",
        "least-squares": "bitwright.grids.least_squares:LeastSquares",
        "hqq-minimum": "bitwright.grids.hqq:Hqq",
        "awq-clip": "bitwright.grids.awq_clip:AwqClip",
        "kmeans-dp": "bitwright.grids.kmeans:KMeans",
    },
    "scales": {
        "float": "bitwright.grids.scales:Float",
        "e8m0": "bitwright.grids.micro:E8M0",
        "e4m3": "bitwright.grids.micro:E4M3",
        "second-level": "bitwright.grids.second_level:SecondLevel",
    },
    "terms": {
        "coded": "bitwright.terms.coded:Coded",
        "columns": "bitwright.terms.columns:Columns",
        "low_rank": "bitwright.terms.low_rank:LowRank",
        "sign_lowrank": "bitwright.terms.sign_lowrank:SignLowRank",
        "rows": "bitwright.terms.rows:Rows",
        "sparse": "bitwright.terms.sparse:Sparse",
        "turns": "bitwright.terms.turns:Turns",
        "widely_linear": "bitwright.terms.widely_linear:WidelyLinear",
    },
    "rounding": {
        "nearest": "bitwright.rounding.nearest:Nearest",
        "gptq": "bitwright.rounding.gptq:GPTQ",
        "layerwise": "bitwright.rounding.layerwise:Layerwise",
        "quantease": "bitwright.rounding.quantease:QuantEase",
        "quantease-outlier": "bitwright.rounding.quantease_outlier:QuantEaseOutlier",
        "chain": "bitwright.rounding.chain:Chain",
        "aqlm": "bitwright.rounding.aqlm:Aqlm",
        "bitstack": "bitwright.rounding.bitstack:BitStack",
        "ggml": "bitwright.rounding.ggml:Ggml",
        "baq": "bitwright.rounding.baq:Baq",
        "cvxq": "bitwright.rounding.cvxq:Cvxq",
        "mixed-columns": "bitwright.rounding.mixed_columns:MixedColumns",
        "double-rounding": "bitwright.rounding.double_rounding:DoubleRounding",
        "residual": "bitwright.rounding.residual:Residual",
        "fairy2i": "bitwright.rounding.fairy2i:Fairy2i",
        "spqr-gptq": "bitwright.rounding.spqr:SpQR",
        "dense-and-sparse": "bitwright.rounding.dense_and_sparse:DenseAndSparse",
    },
    "joint": {
        "adaround": "bitwright.rounding.adaround:AdaRound",
        "cora-ranks": "bitwright.rounding.cora:Cora",
        "discquant": "bitwright.rounding.discquant:DiscQuant",
        "flexround": "bitwright.rounding.flexround:FlexRound",
        "learned-scales": "bitwright.rounding.learned_scales:LearnedScales",
        "lrq": "bitwright.rounding.lrq:Lrq",
        "pv-tuning": "bitwright.rounding.pv_tuning:PvTuning",
        "straight-through": "bitwright.rounding.straight_through:StraightThrough",
        "vq4dit": "bitwright.rounding.vq4dit:Vq4Dit",
    },
    "scopes": {
        "block": "bitwright.training.scopes:Block",
        "layer": "bitwright.training.scopes:Layer",
        "model": "bitwright.training.scopes:Model",
    },
    "loops": {
        "training": "bitwright.training.loop:Training",
    },
    "corrections": {
        "lorc": "bitwright.corrections.lorc:Lorc",
        "outliers": "bitwright.corrections.outliers:Outliers",
    },
    "finishes": {
        "biases": "bitwright.corrections.bias:Biases",
        "norm-statistics": "bitwright.corrections.norm_stats:NormStatistics",
    },
    "activations": {
        "dynamic": "bitwright.activations.dynamic:Dynamic",
        "static": "bitwright.activations.static:Static",
    },
    "allocation": {
        "uniform": "bitwright.allocation.uniform:Uniform",
        "stack": "bitwright.allocation.stack:Stack",
        "greedy": "bitwright.allocation.greedy:Greedy",
        "water-level": "bitwright.allocation.water_level:WaterLevel",
        "integer-program": "bitwright.allocation.integer_program:IntegerProgram",
        "dynamic-program": "bitwright.allocation.dynamic:DynamicProgram",
        "decoupled": "bitwright.allocation.decoupled:Decoupled",
    },
    "probes": {
        "gram-error": "bitwright.allocation.probes:GramError",
        "fisher-loss": "bitwright.allocation.probes:Fisher",
        "divergence": "bitwright.allocation.probes:Divergence",
        "anchored": "bitwright.allocation.probes:Anchored",
    },
    "stats": {
        "gram": "bitwright.calibrate.stats:Gram",
        "cross": "bitwright.calibrate.stats:Cross",
        "range": "bitwright.calibrate.stats:Range",
        "mean-range": "bitwright.calibrate.stats:MeanRange",
    },
    "rules": {
        "rule": "bitwright.recipe:Rule",
        "recipe": "bitwright.recipe:Recipe",
    },
}

RECIPES: dict[str, str] = {
    "best": "bitwright.recipes.best:best",
    "rtn": "bitwright.recipes.rtn:rtn",
    "gptq": "bitwright.recipes.gptq:gptq",
    "quantease": "bitwright.recipes.quantease:quantease",
    "quantease-outlier": "bitwright.recipes.quantease_outlier:quantease_outlier",
    "ptqtp": "bitwright.recipes.ptqtp:ptqtp",
    "bitmod": "bitwright.recipes.bitmod:bitmod",
    "fp-diffusion": "bitwright.recipes.fp_diffusion:fp_diffusion",
    "int-vs-fp": "bitwright.recipes.int_vs_fp:int_vs_fp",
    "flexq": "bitwright.recipes.flexq:flexq",
    "aqlm": "bitwright.recipes.aqlm:aqlm",
    "bitstack": "bitwright.recipes.bitstack:bitstack",
    "zeroquant-v2": "bitwright.recipes.zeroquant_v2:zeroquant_v2",
    "baq": "bitwright.recipes.baq:baq",
    "cvxq": "bitwright.recipes.cvxq:cvxq",
    "fast-2bit": "bitwright.recipes.fast_2bit:fast_2bit",
    "ptq1-61": "bitwright.recipes.ptq1_61:ptq1_61",
    "double-rounding": "bitwright.recipes.double_rounding:double_rounding",
    "tuned": "bitwright.recipes.tuned:tuned",
    "vq4dit": "bitwright.recipes.vq4dit:vq4dit",
    "cora": "bitwright.recipes.cora:cora",
    "adaround": "bitwright.recipes.adaround:adaround",
    "flexround": "bitwright.recipes.flexround:flexround",
    "lrq": "bitwright.recipes.lrq:lrq",
    "adaquant": "bitwright.recipes.adaquant:adaquant",
    "discquant": "bitwright.recipes.discquant:discquant",
    "pv-tuning": "bitwright.recipes.pv_tuning:pv_tuning",
    "gradient-ptq": "bitwright.recipes.gradient_ptq:gradient_ptq",
    "fairy2i": "bitwright.recipes.fairy2i:fairy2i",
    "db-llm": "bitwright.recipes.db_llm:db_llm",
    "hqq": "bitwright.recipes.hqq:hqq",
    "adadim": "bitwright.recipes.adadim:adadim",
    "spqr": "bitwright.recipes.spqr:spqr",
    "squeezellm": "bitwright.recipes.squeezellm:squeezellm",
}

FORMATS: dict[str, str] = {  # what `export` writes and opens
    "native": "bitwright.export.native:Native",
    "compressed-tensors": "bitwright.export.compressed_tensors.directory:CompressedTensors",
    "gptq": "bitwright.export.gptq:Gptq",
    "awq": "bitwright.export.awq:Awq",
    "gguf": "bitwright.export.gguf.model:Gguf",
    "onnx": "bitwright.export.onnx.directory:Onnx",
    "onnx-qdq": "bitwright.export.onnx.directory:OnnxQdq",
    "openvino": "bitwright.export.openvino.directory:Openvino",
}

VIEWS: dict[str, str] = {  # what codes of vectors see of them
    "linear": "bitwright.embed.views:Linear",
    "same": "bitwright.embed.views:Same",
    "bebr": "bitwright.embed.bebr:Recurrent",
    "steered": "bitwright.embed.steered:Steered",
}

WIRINGS: dict[str, str] = {  # config.model_type -> function from a config to a Wiring
    "llama": "bitwright.models.llama:wiring",
    "vit": "bitwright.models.vit:wiring",
    "bitwright_resnet": "bitwright.models.resnet:wiring",
}


def load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def resolve(room: str, name: str) -> Any:
    """The class of a part. Raises BadRequest with the names that exist."""
    if name not in PARTS[room]:
        raise BadRequest(f"There is no {name!r} in {room}; choose one of {', '.join(sorted(PARTS[room]))}.")
    return load(PARTS[room][name])


def form(name: str) -> Any:
    """A format by name, made. Raises BadRequest with the names that exist."""
    if name not in FORMATS:
        raise BadRequest(f"There is no format {name!r}; choose one of {', '.join(FORMATS)}.")
    return load(FORMATS[name])()


@cache
def name_of(kind: type) -> str:
    """The index name of a part's class."""
    spelled = f"{kind.__module__}:{kind.__qualname__}"
    for parts in PARTS.values():
        for name, path in parts.items():
            if path == spelled:
                return name
    raise KeyError(f"{spelled} is not in bitwright/index.py: add its line there")


def to_dict(part: Any) -> Any:
    """A frozen part, and what it is made of, as plain values: {"use": name, field: value, ...}."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: to_dict(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return {"use": name_of(type(part)), **fields}
    return [to_dict(x) for x in part] if isinstance(part, tuple | list) else part


def from_dict(value: Any) -> Any:
    """Inverse of `to_dict`; fields left out take their defaults. Raises BadRequest on unknown names and fields."""
    if isinstance(value, list | tuple):
        return tuple(from_dict(x) for x in value)
    if not isinstance(value, Mapping):
        return value
    fields = {k: from_dict(v) for k, v in value.items() if k != "use"}
    use = value.get("use")
    room = next((room for room, parts in PARTS.items() if use in parts), None)
    if room is None:
        raise BadRequest(f"There is no part called {use!r}; `bitwright list` shows what there is.")
    kind = resolve(room, str(use))
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - known):
        raise BadRequest(f"{use!r} has no field {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}.")
    needed = (f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING)
    if missing := [name for name in needed if name not in fields]:
        raise BadRequest(f"{use!r} lacks the field {missing[0]!r}; add it.")
    hints = get_type_hints(kind)
    for name, given in fields.items():
        if not suits(given, hints[name]):
            raise BadRequest(f"The field {name!r} of {use!r} cannot be {to_dict(given)!r}; give {wanted(hints[name])}.")
    try:
        return kind(**fields)
    except ValueError as error:
        raise BadRequest(f"{use!r} cannot be made of these values: {error}.") from None


def suits(value: Any, hint: Any) -> bool:
    """Whether a value from a file is of the type that a field asks for."""
    inner = get_args(hint)
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return value in inner
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(suits(x, inner[0]) for x in value)
    if inner:
        return any(suits(value, kind) for kind in inner)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def wanted(hint: Any) -> str:
    """A type in words."""
    if inner := [kind for kind in get_args(hint) if kind not in (type(None), ...)]:
        words = ", ".join(repr(kind) if get_origin(hint) is Literal else wanted(kind) for kind in inner)
        return {tuple: f"a list: each {words}", Literal: f"one of {words}"}.get(get_origin(hint), words)
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return plain.get(hint) or f"a part of the kind {hint.__name__.lower()}"
