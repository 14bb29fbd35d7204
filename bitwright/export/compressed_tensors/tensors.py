"""One matrix as compressed-tensors stores it: a term to named tensors and back, exactly.

    integers       weight_packed int32, q + 2^(b-1), low bits first;  weight_scale;  weight_zero_point packed down the rows
    FP8            weight float8_e4m3fn;  weight_scale
    MXFP4, NVFP4   weight_packed uint8, two codes a byte, even column low;  weight_scale as bytes or float8;  weight_global_scale

Our tables ascend and have one zero; a code there is sign and magnitude, and minus zero is read as zero and never written.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.integer import Integer, small
from bitwright.grids.micro import E4M3
from bitwright.grids.table import TABLES
from bitwright.terms import pack
from bitwright.terms.base import Spec
from bitwright.terms.coded import Coded, unfold


def spec(meta: Mapping[str, Any], form: str) -> Spec:
    """Names, shapes and types of the tensors of a matrix, from its meta."""
    grid: Any
    grid, layout, out, inp = unfold(meta)
    down, across = layout.tiles((out, inp))
    scales = (1,) if layout.rows is None and layout.cols is None else (down, across)
    if isinstance(grid, Integer):
        bits = (grid.levels - 1).bit_length()
        found: Spec = {"weight_packed": ((out, words(inp, bits)), torch.int32), "weight_shape": ((2,), torch.int64)}
        if form == "int-quantized":
            found = {"weight": ((out, inp), torch.int8)}
        if not grid.symmetric:
            packed = form == "pack-quantized" and layout.rows == 1
            found["weight_zero_point"] = ((words(down, bits), across), torch.int32) if packed else (scales, torch.int8)
        return found | {"weight_scale": (scales, grid.scale.own.dtype)}
    if grid.table == "e4m3":
        return {"weight": ((out, inp), torch.float8_e4m3fn), "weight_scale": (scales, grid.scale.own.dtype)}
    found = {"weight_packed": ((out, inp * (4 if grid.table == "e2m1" else 6) // 8), torch.uint8)}
    if isinstance(grid.scale, E4M3):
        return found | {"weight_scale": (scales, torch.float8_e4m3fn), "weight_global_scale": ((1,), torch.float32)}
    return found | {"weight_scale": (scales, torch.uint8)}


def words(count: int, bits: int) -> int:
    return ceil(count * bits / 32)


def tensors(term: Coded, form: str) -> dict[str, Tensor]:
    grid: Any = term.grid
    told = spec(term.meta(), form)
    found = {"weight_scale": term.params["scale"].reshape(told["weight_scale"][0])}
    if isinstance(grid, Integer):
        bits = (grid.levels - 1).bit_length()
        shift = 2 ** (bits - 1) - (grid.levels // 2 if grid.symmetric else 2 ** (bits - 1))
        codes = term.codes.int() + shift
        if form == "int-quantized":
            found["weight"] = (codes - 2 ** (bits - 1)).to(torch.int8)
        else:
            found["weight_packed"], found["weight_shape"] = int32(codes, bits), torch.tensor(term.shape)
        if not grid.symmetric:
            zero = term.params["zero"].int().view(term.tiles)
            packed = told["weight_zero_point"][1] == torch.int32
            small_zero = (zero - 2 ** (bits - 1)).to(torch.int8).reshape(told["weight_zero_point"][0]) if not packed else zero
            found["weight_zero_point"] = int32(zero.T, bits).T.contiguous() if packed else small_zero
        return found
    if grid.table == "e4m3":
        found["weight"] = grid.unit(term.codes.device)[term.codes.long(), 0].to(torch.float8_e4m3fn)
        return found
    bits = 4 if grid.table == "e2m1" else 6
    found["weight_packed"] = pack.pack(signed(term.codes, grid.table), 2**bits)
    if isinstance(grid.scale, E4M3):
        found["weight_scale"] = found["weight_scale"].view(torch.float8_e4m3fn)
        found["weight_global_scale"] = term.params["scale_top"][:1, 0].contiguous()
    return found


def term(meta: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Coded:
    """Inverse of `tensors`."""
    grid: Any
    grid, layout, out, inp = unfold(meta)
    tiles = layout.tiles((out, inp))
    scale = stored["weight_scale"]
    params = {"scale": (scale.view(torch.uint8) if scale.dtype == torch.float8_e4m3fn else scale).reshape(-1, 1)}
    if isinstance(grid, Integer):
        bits = (grid.levels - 1).bit_length()
        if "weight" in stored:
            codes = stored["weight"].int() + 2 ** (bits - 1)
        else:
            codes = pack.unpack(pack.octets(stored["weight_packed"]), 2**bits, inp)
        if not grid.symmetric:
            zero = stored["weight_zero_point"]
            packed = zero.dtype == torch.int32
            rows = pack.unpack(pack.octets(zero.T), 2**bits, tiles[0]).T if packed else zero + 2 ** (bits - 1)
            params["zero"] = rows.reshape(-1, 1).to(torch.uint8)
        return Coded((out, inp), grid, layout, codes.to(small(grid.levels)), params)
    if grid.table == "e4m3":
        codes = torch.searchsorted(grid.unit(torch.device("cpu"))[:, 0].contiguous(), stored["weight"].float())
    else:
        codes = unsigned(pack.unpack(stored["weight_packed"], 16 if grid.table == "e2m1" else 64, inp), grid.table)
    if isinstance(grid.scale, E4M3):
        params["scale_top"] = stored["weight_global_scale"].reshape(1, 1).expand(tiles[0] * tiles[1], 1)
    return Coded((out, inp), grid, layout, codes.to(torch.uint8), params)


def int32(codes: Ints[Tensor, "rows count"], bits: int) -> Ints[Tensor, "rows words"]:
    """The dense little-endian bit stream of each row in whole 32-bit words."""
    data = pack.pack(codes, 2**bits)
    padded = torch.nn.functional.pad(data, (0, -data.shape[1] % 4))
    return padded.contiguous().view(torch.int32)[:, : words(codes.shape[1], bits)].contiguous()


def signed(codes: Ints[Tensor, "out inp"], table: str) -> Ints[Tensor, "out inp"]:
    """Ascending codes with one zero to sign and magnitude; zero has no sign."""
    middle = len(TABLES[table]) // 2
    place = codes.int() - middle
    return place.abs() + (place < 0) * (middle + 1)


def unsigned(codes: Ints[Tensor, "out inp"], table: str) -> Ints[Tensor, "out inp"]:
    middle = len(TABLES[table]) // 2
    place = codes.int() & middle
    return torch.where(codes.int() > middle, -place, place) + middle
