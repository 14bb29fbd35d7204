"""What a block of GGUF weights is: bytes that split into parts, and codes whose bits lie in one or several of the parts.

Every bit layout of the family is one pattern: bytes in runs, and within a run the fields of the lowest bits of all its bytes come
first, then those of the next bits, and so on. With runs of one byte that is the plain bit stream.

    fields(data, bits, run):  elem (run index, field, byte)  =  data[run index, byte] >> bits field  &  2^bits - 1

Parameters stay as they are stored. Half floats are moved as bits, so that NaN scales of a damaged file survive a round trip.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

Leaves = dict[str, Tensor]


@runtime_checkable
class Block(Protocol):
    """The codec of one type. `group`: weights that share a scale; `levels`: values of a code (0: the type has no codes)."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def weights(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def levels(self) -> int: ...

    def unpack(self, data: UInt8[Tensor, "rows nbytes"]) -> Leaves:
        """Codes [rows, inp] in natural order and parameters [rows, groups], as stored."""
        ...

    def pack(self, leaves: Leaves) -> UInt8[Tensor, "rows nbytes"]:
        """Inverse of `unpack`. Raises ValueError where a code or a parameter does not fit its bits."""
        ...

    def decode(self, leaves: Leaves) -> Float32[Tensor, "rows inp"]:
        """The weights, in the order of operations that llama.cpp uses."""
        ...


@dataclass(frozen=True)
class Plane:
    """Some bits of the codes: where they lie, and their place in the code. `flip` turns two's complement into a code from 0."""

    part: str
    bits: int
    run: int
    shift: int = 0
    flip: int = 0


def split(data: UInt8[Tensor, "rows nbytes"], sizes: Mapping[str, int]) -> Leaves:
    """The parts [rows, blocks, size] of every block, in the order of `sizes`."""
    rows, nbytes = data.shape
    total = sum(sizes.values())
    if nbytes % total:
        raise ValueError(f"rows of {nbytes} bytes are not whole blocks of {total} bytes")
    parts = data.reshape(rows, nbytes // total, total).split(list(sizes.values()), dim=-1)
    return dict(zip(sizes, parts))


def merge(parts: Leaves, sizes: Mapping[str, int]) -> UInt8[Tensor, "rows nbytes"]:
    """Inverse of `split`, of parts of any type. Raises ValueError where a part has another size: a parameter of a wrong type."""
    as_stored = {name: as_bytes(parts[name]) for name in sizes}
    for name, data in as_stored.items():
        if data.shape[-1] != sizes[name]:
            raise ValueError(f"{name} takes {data.shape[-1]} bytes of a block, not {sizes[name]}: wrong type {parts[name].dtype}?")
    return torch.cat(list(as_stored.values()), dim=-1).flatten(1)


def as_bytes(x: Shaped[Tensor, "rows blocks count"]) -> UInt8[Tensor, "rows blocks bytes"]:
    return x.contiguous().view(torch.uint8)


def flat(x: Shaped[Tensor, "rows blocks _"], dtype: torch.dtype) -> Shaped[Tensor, "rows count"]:
    """A part read as numbers of a type. The copy begins where numbers may: the part itself can lie at any byte."""
    return x.clone(memory_format=torch.contiguous_format).view(dtype).flatten(1)


def fields(data: UInt8[Tensor, "rows blocks bytes"], bits: int, run: int) -> UInt8[Tensor, "rows blocks count"]:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    rows, blocks, size = data.shape
    runs = data.reshape(rows, blocks, size // run, 1, run)
    return (runs >> shifts[:, None] & 2**bits - 1).flatten(2)


def unfields(values: UInt8[Tensor, "rows blocks count"], bits: int, run: int) -> UInt8[Tensor, "rows blocks bytes"]:
    """Inverse of `fields`, of values below 2^bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=values.device)
    rows, blocks, count = values.shape
    runs = values.reshape(rows, blocks, count // (run * len(shifts)), len(shifts), run)
    return (runs << shifts[:, None]).sum(-2, dtype=torch.uint8).flatten(2)


def read_codes(parts: Leaves, planes: Iterable[Plane]) -> UInt8[Tensor, "rows inp"]:
    codes: Tensor | None = None
    for p in planes:
        here = (fields(parts[p.part], p.bits, p.run) ^ p.flip) << p.shift
        codes = here if codes is None else codes | here
    assert codes is not None
    return codes.flatten(1)


def write_codes(codes: UInt8[Tensor, "rows blocks weights"], planes: Iterable[Plane]) -> Leaves:
    return {p.part: unfields(codes >> p.shift & 2**p.bits - 1 ^ p.flip, p.bits, p.run) for p in planes}


def in_blocks(x: Shaped[Tensor, "rows count"], per: int, levels: int = 0, low: int = 0) -> Shaped[Tensor, "rows blocks per"]:
    """Cut into blocks; raises ValueError where integers are outside low .. low + levels - 1."""
    if x.shape[1] % per:
        raise ValueError(f"{x.shape[1]} values are not whole blocks of {per}")
    if levels and x.numel() and not (int(x.min()) >= low and int(x.max()) < low + levels):
        raise ValueError(f"values must lie in {low} .. {low + levels - 1}")
    return x.unflatten(1, (x.shape[1] // per, per))


def affine(
    values: Float[Tensor, "rows inp"], scale: Float[Tensor, "rows groups"], plus: Float[Tensor, "rows groups"] | None = None
) -> Float32[Tensor, "rows inp"]:
    """Scale by groups and add, each operation rounded: no fused multiply-add, which the reference does not use either."""
    groups = scale.shape[1]
    w = values.unflatten(1, (groups, values.shape[1] // groups)) * scale[..., None]
    return (w if plus is None else w + plus[..., None]).flatten(1)
