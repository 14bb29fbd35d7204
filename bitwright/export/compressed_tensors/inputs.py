"""How inputs are quantized, as a compressed-tensors configuration says it, from our parts and back.

Dynamic, whole token      strategy token          dynamic true          int8, FP8
Dynamic, groups           strategy group          dynamic true          FP8 of 128, MXFP4, MXFP8
Dynamic, NV groups        strategy tensor_group   dynamic "local"       input_global_scale, fp32, a divisor
Static                    strategy tensor         dynamic false         input_scale
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bitwright.activations.base import Activation
from bitwright.activations.dynamic import Dynamic
from bitwright.activations.static import Static
from bitwright.errors import BadRequest
from bitwright.grids.base import Params
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E4M3, E8M0
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.terms.base import Json, Spec

FLOATS = {4: "e2m1", 8: "e4m3"}


def input_args(part: Activation) -> tuple[tuple[str, Json], ...] | str:
    """The arguments of an input quantizer, or in words why there are none."""
    grid: Any = getattr(part, "grid", None)
    args: dict[str, Json] = {"symmetric": True, "dynamic": True}
    if isinstance(grid, Integer) and grid.symmetric and grid.levels in (16, 256) and isinstance(grid.scale, Float):
        args |= {"num_bits": (grid.levels - 1).bit_length(), "type": "int"}
    elif isinstance(grid, Table) and grid.table in FLOATS.values():
        args |= {"num_bits": 4 if grid.table == "e2m1" else 8, "type": "float"}
    else:
        return "inputs of this grid have no scheme; use int8, FP8, MXFP4, MXFP8 or NVFP4 inputs"
    if isinstance(part, Static):
        if not isinstance(grid.scale, Float):
            return "static inputs have one float scale; use float scales, or quantize the inputs dynamically"
        return tuple({**args, "strategy": "tensor", "dynamic": False}.items())
    group = part.group if isinstance(part, Dynamic) else None
    if isinstance(grid.scale, E4M3):
        if group != 16:
            return "NVFP4 inputs have groups of 16; set the group of the inputs to 16"
        args |= {"strategy": "tensor_group", "group_size": 16, "dynamic": "local", "scale_dtype": "torch.float8_e4m3fn"}
    elif isinstance(grid.scale, E8M0):
        if group != 32:
            return "powers of two as scales of inputs go with groups of 32; set the group of the inputs to 32"
        args |= {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    else:
        args |= {"strategy": "token"} if group is None else {"strategy": "group", "group_size": group}
    return tuple(args.items())


def part_of(args: Mapping[str, Json], scale: str) -> Activation:
    """Inverse of `input_args`; `scale` is the type of float scales. Raises BadRequest for what is not read yet."""
    bits, kind, strategy = args.get("num_bits"), args.get("type", "int"), args.get("strategy")
    group, floats = args.get("group_size"), Float(scale)  # type: ignore[arg-type]
    power = str(args.get("scale_dtype")) == "torch.uint8"
    grid: Any = None
    if kind == "int" and bits in (4, 8) and args.get("symmetric", True):
        grid = Integer(2**bits, True, scale=floats)
    elif kind == "float" and bits in FLOATS:
        nv = strategy == "tensor_group"
        grid = Table(FLOATS[bits], scale=E4M3() if nv else E8M0("even", 1) if power else floats)
    if grid is not None and args.get("dynamic") in (True, "local"):
        if strategy in ("token", None):
            return Dynamic(grid)
        if strategy in ("group", "tensor_group") and isinstance(group, int) and group > 0:
            return Dynamic(grid, group)
    if grid is not None and args.get("dynamic", False) is False and strategy in ("tensor", None):
        return Static(grid)
    raise BadRequest(
        f"Inputs of {bits} bits of the type {kind!r} with the strategy {strategy!r} are not read yet; "
        "dequantize the model with the tool that wrote it."
    )


def spec(part: Activation | None) -> Spec:
    """What is stored of a matrix's inputs."""
    if part is None or not part.needs:
        return {}
    (leaf,) = part.leaves.values()
    return {"input_scale" if isinstance(part, Static) else "input_global_scale": ((1,), leaf.dtype)}


def tensors(part: Activation | None, stored: Params) -> dict[str, Tensor]:
    return {name: t.reshape(1) for name, t in zip(spec(part), stored.values())}


def params(part: Activation, stored: Mapping[str, Tensor]) -> Params:
    """Inverse of `tensors`."""
    return {leaf: stored[name].reshape(1, 1) for leaf, name in zip(part.leaves, spec(part))}
