"""Matrix: a coded matrix as graph formats store it: whole bytes or nibbles of codes, a scale per group, perhaps a zero.

    style         codes                                 scale, zero                    engines
    matmulnbits   uint8 [out, across, group bits / 8]   [out, across], zeros packed    onnxruntime's own operator
    qdq           u/int4 | u/int8 | float8 [inp, out]   [across, out] | [out] | []     any that dequantizes by opset 21
    openvino      u/int4 | u/int8 | float8 [out, across, group]   [down, across, 1]    OpenVINO's decompression pattern

A grid of L levels sits in the smallest container that has as many codes: 9 levels take 4 bits. Symmetric grids store no zero;
their codes are shifted so that the middle of the grid is the middle of the container, which is what engines take for granted.
Scales keep the type that we store them in and are cast to fp32 by the graph, so nothing is rounded a second time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Literal

import torch
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright import index
from bitwright.errors import BadRequest
from bitwright.export.base import Metas
from bitwright.grids.integer import Integer, small
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.terms import pack
from bitwright.terms.base import Json
from bitwright.terms.coded import Coded, unfold

Style = Literal["matmulnbits", "qdq", "openvino"]
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # of a matrix: leaf -> type by name, shape
BLOCKS = (16, 32, 64, 128, 256)  # groups that onnxruntime's operator takes


@dataclass(frozen=True)
class Matrix:
    """How one matrix is stored: `bits` of the container, groups of `group` columns, `down` x `across` of them."""

    out: int
    inp: int
    down: int
    across: int
    group: int
    levels: int
    bits: int
    kind: Literal["symmetric", "asymmetric", "float8"]
    scale: str
    style: Style

    def spec(self) -> Shapes:
        """Types and shapes of the tensors of this matrix."""
        kind = {"symmetric": f"int{self.bits}", "asymmetric": f"uint{self.bits}", "float8": "float8_e4m3fn"}[self.kind]
        if self.style == "matmulnbits":
            codes: tuple[str, tuple[int, ...]] = ("uint8", (self.out, self.across, self.group * self.bits // 8))
            shape: tuple[int, ...] = (self.out, self.across)
            zero: tuple[str, tuple[int, ...]] = ("uint8", (self.out, ceil(self.across * self.bits / 8)))
        elif self.style == "qdq":
            shape = (self.across, self.out) if self.across > 1 else (self.out,) if self.down > 1 else ()
            codes, zero = (kind, (self.inp, self.out)), (kind, shape)
        else:
            shape = (self.down, self.across, 1)
            codes, zero = (kind, (self.out, self.across, self.group)), (kind, shape)
        found = {"codes": codes, "scale": (self.scale, shape)}
        return found | {"zero": zero} if self.kind == "asymmetric" else found

    def bytes(self) -> int:
        return sum(size(kind, shape) for kind, shape in self.spec().values())


def matrix(metas: Metas, style: Style) -> Matrix | str:
    """A matrix as the style stores it (`matmulnbits` falls back to `qdq` where it must), or in words why it cannot."""
    if len(metas) > 1 or metas[0]["kind"] != "coded":
        kinds = " + ".join(meta["kind"] for meta in metas)
        return f"it is a sum of terms ({kinds}), and the graph multiplies by one coded matrix; leave out corrections"
    if metas[0]["columns"] is not None:
        return "its groups follow a permutation of the inputs, for which the graph has no place; use static groups"
    grid: Any
    grid, layout, out, inp = unfold(metas[0])
    (rows, cols), (down, across) = layout.block((out, inp)), layout.tiles((out, inp))
    if rows != 1 and (rows, cols) != (out, inp):
        return f"scales of blocks of {rows} x {cols} have no operator; use groups along the input, channels or the whole matrix"
    whole = isinstance(grid, Integer) and grid.levels <= 256
    if not (whole or (isinstance(grid, Table) and grid.table == "e4m3")):
        kind = getattr(grid, "table", None) or index.name_of(grid.__class__)
        return f"its operators hold integers of at most 8 bits and FP8, not {kind!r} of {grid.levels} levels; use one of these"
    if not isinstance(grid.scale, Float):
        return f"its scales are floats, not {index.name_of(grid.scale.__class__)!r}; use float scales"
    if whole and style == "matmulnbits" and down == out and cols in BLOCKS:
        widths: tuple[int, ...] = (2, 4, 8)
    else:
        style, widths = "openvino" if style == "openvino" else "qdq", (4, 8)
    bits = next(b for b in widths if grid.levels <= 2**b)
    kind = "float8" if not whole else "symmetric" if grid.symmetric else "asymmetric"
    return Matrix(out, inp, down, across, cols, grid.levels, bits, kind, grid.scale.name, style)  # type: ignore[arg-type]


def size(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a type by its name; types below a byte are packed without gaps."""
    width = {"uint4": 4, "int4": 4}.get(kind)
    return ceil(prod(shape) * width / 8) if width else prod(shape) * getattr(torch, kind).itemsize


def store(term: Coded, m: Matrix) -> dict[str, bytes]:
    """The bytes of every tensor of a matrix."""
    found = {"scale": raw(turned(term.params["scale"].view(m.down, m.across), m))}
    if m.kind == "float8":
        values = term.grid.unit(term.codes.device)[term.codes.long(), 0]  # type: ignore[attr-defined]
        return {"codes": raw((values.T if m.style == "qdq" else values).to(torch.float8_e4m3fn))} | found
    found["codes"] = packed(turned(term.codes.int() + shift(m), m), m)
    if m.kind == "asymmetric":
        found["zero"] = packed(turned(term.params["zero"].view(m.down, m.across).int(), m), m)
    return found


def restore(meta: Mapping[str, Json], m: Matrix, stored: Mapping[str, Tensor]) -> Coded:
    """Inverse of `store`, from the bytes. Raises BadRequest where they are no codes of this grid."""
    grid: Any
    grid, layout, out, inp = unfold(meta)
    scale, across_first = stored["scale"].view(getattr(torch, m.scale)), m.style == "qdq"
    params = {"scale": (scale.view(m.across, m.down).T if across_first else scale).reshape(-1, 1).contiguous()}
    sound = bool(torch.isfinite(scale).all())
    if m.kind == "float8":
        values = stored["codes"].view(torch.float8_e4m3fn).float()
        values = (values.view(inp, out).T if across_first else values.view(out, inp)).contiguous()
        codes = torch.searchsorted(grid.unit(values.device)[:, 0].contiguous(), values)
    else:
        codes = unpacked(stored["codes"], m, out, inp) - shift(m)
        if m.kind == "asymmetric":
            zero = unpacked(stored["zero"], m, m.down, m.across)
            params["zero"] = zero.reshape(-1, 1).to(torch.uint8)
            sound &= int(zero.max()) < m.levels
    if not (sound and int(codes.min()) >= 0 and int(codes.max()) < m.levels):
        raise BadRequest("A matrix holds codes or scales that its grid does not have; the file is damaged, export it again.")
    return Coded((out, inp), grid, layout, codes.to(small(m.levels)), params)


def shift(m: Matrix) -> int:
    """From our codes to the container's: the middle of a symmetric grid to the middle of the container."""
    return 2 ** (m.bits - 1) - m.levels // 2 if m.kind == "symmetric" else 0


def turned(rows: Tensor, m: Matrix) -> Tensor:
    return rows.T if m.style == "qdq" else rows


def signed(m: Matrix) -> int:
    """What turns a code with the middle at 2^(b-1) into two's complement, and back."""
    return 2 ** (m.bits - 1) if m.kind == "symmetric" and m.style != "matmulnbits" else 0


def packed(codes: Ints[Tensor, "rows cols"], m: Matrix) -> bytes:
    """Dense little-endian bits; rows of the operator of onnxruntime begin on a byte."""
    rows = codes if m.style == "matmulnbits" else codes.reshape(1, -1)
    return raw(pack.pack(rows ^ signed(m), 2**m.bits))


def unpacked(data: Tensor, m: Matrix, out: int, inp: int) -> Ints[Tensor, "out inp"]:
    if m.style == "matmulnbits":
        return pack.unpack(data.view(out, -1), 2**m.bits, inp).int()
    codes = pack.unpack(data.view(1, -1), 2**m.bits, out * inp).int() ^ signed(m)
    return codes.view(inp, out).T.contiguous() if m.style == "qdq" else codes.view(out, inp)


def raw(x: Tensor) -> bytes:
    data: bytes = x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data
