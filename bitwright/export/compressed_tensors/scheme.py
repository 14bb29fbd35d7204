"""Schemes: what a compressed-tensors configuration says of a matrix, from our metas and back. Nothing here reads a weight.

    integer grid, 2^b or 2^b - 1 levels      int-b, strategy by layout           pack-quantized (int-quantized with inputs)
    table e4m3, float scales                 float-8, tensor | channel | block   float-quantized
    table e2m1, scale e4m3, groups of 16     float-4, tensor_group               nvfp4-pack-quantized
    table e2m1 | e2m3 | e4m3, scale e8m0, 32 float-4 | 6 | 8, group              mxfp4- | mxfp6-pack- | mxfp8-quantized

Scales have the type of the model's weights, as engines expect. Cards: formats (section 6); checked against release 0.20.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright import index
from bitwright.activations.base import Activation
from bitwright.errors import BadRequest
from bitwright.export.base import Metas
from bitwright.export.compressed_tensors.inputs import input_args
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E4M3, E8M0
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.terms.base import Json
from bitwright.terms.coded import coded_meta

MICRO = {"e2m1": (4, "mxfp4-pack-quantized"), "e2m3": (6, "mxfp6-pack-quantized"), "e4m3": (8, "mxfp8-quantized")}
ARGS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": None, "group_size": None, "dynamic": False}


Args = tuple[tuple[str, Json], ...]


@dataclass(frozen=True)
class Scheme:
    """`format` names the tensors; `weights` and `inputs` are the arguments as config.json has them."""

    format: str
    weights: Args
    inputs: Args | None = None

    def args(self) -> dict[str, Json]:
        return plain(self.weights)


def plain(args: Args) -> dict[str, Json]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in args}


def scheme(metas: Metas, inputs: Activation | None = None) -> Scheme | str:
    """The scheme of a matrix and its inputs, or in words why there is none."""
    found = weights_scheme(metas)
    if inputs is None or isinstance(found, str):
        return found
    told = input_args(inputs)
    if isinstance(told, str):
        return told
    bytewise = dict(found.weights)["type"] == "int" and dict(found.weights)["num_bits"] == 8
    return Scheme("int-quantized" if bytewise else found.format, found.weights, told)


def weights_scheme(metas: Metas) -> Scheme | str:
    if len(metas) > 1 or metas[0]["kind"] != "coded":
        kinds = " + ".join(meta["kind"] for meta in metas)
        return f"it is a sum of terms ({kinds}), and an engine reads one coded matrix; leave out corrections"
    if metas[0]["columns"] is not None:
        return "its groups follow a permutation of the inputs, which release 0.20 no longer reads; use static groups"
    grid: Any = index.from_dict(metas[0]["grid"])
    layout = Layout(*metas[0]["layout"])
    shape = strategy(layout)
    if isinstance(grid, Integer) and isinstance(grid.scale, Float):
        bits = (grid.levels - 1).bit_length()
        if bits > 8:
            return f"{grid.levels} levels take {bits} bits, and it holds integers of 1 to 8; use fewer levels"
        return made("pack-quantized", bits, "int", grid.symmetric, shape)
    if isinstance(grid, Table) and isinstance(grid.scale, E8M0) and grid.table in MICRO:
        if layout != Layout(1, 32):
            return "powers of two as scales go with groups of 32; set the group to 32"
        bits, name = MICRO[grid.table]
        return made(name, bits, "float", True, shape, scale_dtype="torch.uint8")
    if grid == Table("e2m1", grid.by, grid.polish, E4M3()) if isinstance(grid, Table) else False:
        if layout != Layout(1, 16):
            return "NVFP4 has groups of 16; set the group to 16"
        return made("nvfp4-pack-quantized", 4, "float", True, {"strategy": "tensor_group", "group_size": 16},
                    scale_dtype="torch.float8_e4m3fn")  # fmt: skip
    if isinstance(grid, Table) and isinstance(grid.scale, Float) and grid.table == "e4m3":
        return made("float-quantized", 8, "float", True, shape)
    return f"it has no scheme for {described(grid)}; use integers of 1 to 8 bits, FP8, MXFP4, MXFP6, MXFP8 or NVFP4"


def described(grid: Any) -> str:
    scale = index.name_of(grid.scale.__class__) if hasattr(grid, "scale") else "no"
    return f"the grid {getattr(grid, 'table', None) or index.name_of(grid.__class__)!r} with scales of the kind {scale!r}"


def made(form: str, bits: int, kind: str, symmetric: bool, shape: Mapping[str, Json], **more: Json) -> Scheme:
    return Scheme(form, tuple({**ARGS, "num_bits": bits, "type": kind, "symmetric": symmetric, **shape, **more}.items()))


def strategy(layout: Layout) -> dict[str, Json]:
    if layout == Layout(None, None):
        return {"strategy": "tensor"}
    if layout.rows == 1:
        return {"strategy": "channel"} if layout.cols is None else {"strategy": "group", "group_size": layout.cols}
    return {"strategy": "block", "block_structure": (layout.rows, layout.cols)}


def layout_of(args: Mapping[str, Json]) -> Layout:
    """Inverse of `strategy`. Raises BadRequest for one that is not known."""
    kind, group = args.get("strategy"), args.get("group_size")
    if kind is None:  # as old configurations leave it out
        kind = "tensor" if group is None else "channel" if group == -1 else "group"
    if kind in ("group", "tensor_group") and isinstance(group, int) and group > 0:
        return Layout(1, group)
    if kind == "block" and isinstance(args.get("block_structure"), list | tuple):
        return Layout(*args["block_structure"])
    if kind in ("tensor", "channel"):
        return Layout(None, None) if kind == "tensor" else Layout(1, None)
    raise BadRequest(f"The strategy {kind!r} with groups of {group!r} is not read yet; dequantize the model with its own tool.")


def metas_of(args: Mapping[str, Json], form: str, shape: tuple[int, int], scale: str) -> Metas:
    """The metas of a matrix from the arguments of its scheme; `scale` is the type of its stored scales."""
    bits, kind = args.get("num_bits"), args.get("type", "int")
    floats: dict[int, str] = {4: "e2m1", 6: "e2m3", 8: "e4m3"}
    if kind == "int" and isinstance(bits, int) and 1 <= bits <= 8:
        grid: Any = Integer(2**bits, bool(args.get("symmetric", True)), scale=Float(scale))  # type: ignore[arg-type]
    elif kind == "float" and bits in floats and form.startswith(("mxfp", "nvfp4")):
        grid = Table(floats[bits], scale=E4M3() if form.startswith("nvfp4") else E8M0("even", 3 if bits == 6 else 1))
    elif kind == "float" and bits == 8:
        grid = Table("e4m3", scale=Float(scale))  # type: ignore[arg-type]
    else:
        raise BadRequest(f"{bits} bits of the type {kind!r} in the format {form!r} are not read yet; dequantize the model first.")
    return (coded_meta(shape, grid, layout_of(args)),)
