"""Writes a GGUF file in one pass: the description of all tensors first, then their bytes, one tensor in memory at a time.

A metadata value says its own type: numpy scalars and arrays are stored as what they are, `bool` and `str` too, a `float` in 32
bits, and a list holds values of one type. A plain `int` could be any of eight types, of which llama.cpp accepts one per key, and
is refused. These are the values that container.py reads.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from bitwright.errors import BadRequest, writing
from bitwright.export.gguf.types import ALIGNMENT, ALIGNMENT_KEY, ARRAY, BOOL, KINDS, MAGIC, MAX_DIMS, NUMBERS, STRING, VERSION

MAX_NAME = 63  # bytes; llama.cpp keeps names in 64 with a closing zero
VALUE_TYPES = {dtype: kind for kind, dtype in NUMBERS.items()} | {np.dtype(np.bool_): BOOL}

Shape = tuple[int, ...]


def write(
    path: str | Path,
    metadata: Mapping[str, Any],
    infos: Mapping[str, tuple[Shape, str]],
    chunks: Iterable[tuple[str, UInt8[Tensor, "rows nbytes"]]],
) -> None:
    """`infos`: shape (inputs last) and type of every tensor, in the order in which `chunks` brings their bytes. The file has
    another name until it is complete. Raises BadRequest where it cannot be written or a tensor has no place in the format."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    alignment = aligned_to(metadata)
    head = described(metadata, infos, alignment)
    try:
        with writing(path):
            file = partial.open("wb")
        with file:
            with writing(path):
                put(file, head, alignment)
            left = iter(infos)
            for name, data in chunks:
                if name != (due := next(left, None)):
                    raise ValueError(f"the tensor {name} came where {due} was due")
                if data.numel() != size(*infos[name]):
                    raise ValueError(f"the tensor {name} came with {data.numel()} bytes, not {size(*infos[name])}")
                with writing(path):
                    put(file, data.detach().cpu().contiguous().numpy().data, alignment)
            if (due := next(left, None)) is not None:
                raise ValueError(f"the tensor {due} did not come")
            with writing(path):
                file.flush()
        with writing(path):
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def aligned_to(metadata: Mapping[str, Any]) -> int:
    value = metadata.get(ALIGNMENT_KEY, np.uint32(ALIGNMENT))
    if not isinstance(value, np.uint32) or int(value).bit_count() != 1:
        raise ValueError(f"{ALIGNMENT_KEY} must be a power of two of type uint32, not {value!r}")
    return int(value)


def put(file: IO[bytes], data: bytes | memoryview, alignment: int) -> None:
    """The bytes, and zeros up to where the next tensor may begin."""
    file.write(data)
    nbytes = data.nbytes if isinstance(data, memoryview) else len(data)
    file.write(bytes(-nbytes % alignment))


def size(shape: Shape, kind: str) -> int:
    return prod(shape) // KINDS[kind].weights * KINDS[kind].bytes


def described(metadata: Mapping[str, Any], infos: Mapping[str, tuple[Shape, str]], alignment: int) -> bytes:
    """All of the file before the tensors' bytes."""
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(infos), len(metadata))]
    for key, value in metadata.items():
        kind, stored = encoded(value, key)
        head += [text(key), u32(kind), stored]
    offset = 0
    for name, (shape, kind_name) in infos.items():
        fits(name, shape, kind_name)
        head += [text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        head.append(struct.pack("<IQ", KINDS[kind_name].id, offset))
        offset += -(-size(shape, kind_name) // alignment) * alignment
    return b"".join(head)


def fits(name: str, shape: Shape, kind: str) -> None:
    """Raises BadRequest where llama.cpp would not take the tensor."""
    if len(name.encode()) > MAX_NAME:
        raise BadRequest(f"The tensor name {name!r} is longer than the {MAX_NAME} bytes that llama.cpp reads; give a shorter name.")
    if not 1 <= len(shape) <= MAX_DIMS or 0 in shape:
        raise BadRequest(f"The tensor {name} has the shape {shape}; GGUF has 1 to {MAX_DIMS} dimensions of at least 1; reshape it.")
    if shape[-1] % KINDS[kind].weights:
        raise BadRequest(
            f"The tensor {name} has rows of {shape[-1]} weights, which are not whole {kind} blocks of {KINDS[kind].weights}; "
            "store it in a type of smaller blocks, such as Q8_0 or F16."
        )


def encoded(value: Any, key: str) -> tuple[int, bytes]:
    """The type number of a metadata value and its bytes. Raises ValueError where the value does not say its type."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in VALUE_TYPES:
        return ARRAY, array(VALUE_TYPES[value.dtype], len(value), value.tobytes())
    if isinstance(value, np.generic) and value.dtype in VALUE_TYPES:  # before float: np.float64 is one
        return VALUE_TYPES[value.dtype], value.tobytes()
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, float):
        return encoded(np.float32(value), key)
    if isinstance(value, str):
        return STRING, text(value)
    if isinstance(value, list):
        items = [encoded(item, key) for item in value]
        kinds = {kind for kind, _ in items} or {STRING}
        if len(kinds) > 1:
            raise ValueError(f"the metadata list {key} has values of several types")
        return ARRAY, array(kinds.pop(), len(items), b"".join(stored for _, stored in items))
    raise ValueError(f"the metadata value {key} is a {type(value).__name__}, which no GGUF type follows from; give a numpy scalar")


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def u32(value: int) -> bytes:
    return struct.pack("<I", value)
