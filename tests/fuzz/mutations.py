"""Changes that get past the outer shell: a file is taken apart, one thing in it is made odd, and it is put together again so that
lengths and offsets are right. Plain changes of bytes stay in the mix, so the shell itself is tried too.
"""

import json
import random
from collections.abc import Callable
from typing import Any

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
         "F8_E5M2": 1, "U16": 2, "F8_E8M0": 1}  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 64, 128, 255, 256, 257, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63)
MOST = 2**16  # bytes that a tensor may be grown to

Raw = Callable[[bytes, int], bytes]  # libFuzzer's own change of bytes: data, largest size


def odd(rng: random.Random, words: list[str]) -> Any:
    number = rng.choice(NUMBERS)
    return rng.choice(
        [None, True, False, number, -number, number + 0.5, float("inf"), float("nan"), 10**30, "", rng.choice(words),
         rng.choice(words), f"re:{rng.choice(words)}", [], {}, [number], [number, rng.choice(NUMBERS)], {rng.choice(words): number}]
    )  # fmt: skip


def places(value: Any, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


def follow(value: Any, at: tuple) -> Any:
    for key in at:
        value = value[key]
    return value


def changed(value: Any, rng: random.Random, words: list[str]) -> Any:
    """A document with one place removed, replaced, copied from elsewhere, nudged or renamed."""
    all_places = places(value)
    if len(all_places) == 1 or rng.random() < 0.01:
        return odd(rng, words)
    place = rng.choice(all_places[1:])
    part, key, how = follow(value, place[:-1]), place[-1], rng.randrange(6)
    if how == 0:
        del part[key]
    elif how == 1:
        part[key] = json.loads(json.dumps(follow(value, rng.choice(all_places))))
    elif how == 2 and isinstance(part[key], int | float):
        part[key] += rng.choice([-1, 1, part[key], 0.5])
    elif how == 3 and isinstance(part, dict):
        part[rng.choice([*words, *map(str, part)])] = part[key] if rng.random() < 0.5 else part.pop(key)
    elif how == 4 and isinstance(part, list):
        part.insert(key, odd(rng, words))
    else:
        part[key] = odd(rng, words)
    return value


def document(data: bytes, rng: random.Random, words: list[str]) -> bytes:
    """A JSON file. Raises ValueError where it is none."""
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        value = changed(value, rng, words)
    return json.dumps(value).encode()


def filled(data: bytes, size: int) -> bytes:
    """As many bytes as a tensor needs, where these are few enough to be given."""
    return (data * (size // len(data) + 1))[:size] if data and len(data) < size <= MOST else data[: max(size, 0)]


def bytes_of(data: bytes, rng: random.Random, most: int, raw: Raw) -> bytes:
    """The bytes of a tensor: a stretch of one value, as damaged disks leave it, or libFuzzer's changes."""
    if rng.random() < 0.5 or not data:
        return raw(data, most)
    at, size = rng.randrange(len(data)), rng.choice([1, 2, 4, len(data)])
    value = bytes([rng.choice([0, 1, 0x7F, 0x80, 0x7C, 0xFF])])
    return (data[:at] + value * size + data[at + size :])[: len(data)]


def shape(dims: list[int], rng: random.Random) -> list[int]:
    dims = list(dims)
    how = rng.randrange(5)
    if how == 0 and dims:
        dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)
    elif how == 1:
        dims.insert(rng.randint(0, len(dims)), rng.choice([0, 1, 2]))
    elif how == 2 and dims:
        del dims[rng.randrange(len(dims))]
    elif how == 3:
        dims.reverse()
    elif dims:
        dims = [0, *dims[1:-1], rng.choice(NUMBERS)] if len(dims) > 1 else [0]
    return dims


def product(dims: list[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total


def safetensors(data: bytes, rng: random.Random, words: list[str], raw: Raw) -> bytes:
    """A file of weights with one tensor renamed, retyped, reshaped, lost or refilled; or its header made odd as JSON. Raises
    ValueError and its kin where it is none."""
    size = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.15:
        return sealed(changed(head, rng, words), body)
    tensors = {n: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in head.items() if n != "__metadata__"}
    for _ in range(rng.choice([1, 1, 2])):
        name, how = rng.choice(list(tensors)), rng.randrange(6)
        dtype, dims, inner = tensors[name]
        if how == 0:
            dtype = rng.choice(list(SIZES))
        elif how in (1, 2):
            dims = shape(dims, rng)
        elif how == 3:
            inner = bytes_of(inner, rng, len(inner), raw)
        elif how == 4:
            del tensors[name]
            name = ".".join([*name.split(".")[:-1], rng.choice([*words, *(n.split(".")[-1] for n in tensors)])])
        elif len(tensors) > 1:
            del tensors[name]
            continue
        tensors[name] = dtype, dims, filled(inner, product(dims) * SIZES.get(dtype, 1))
    at, found, parts = 0, {}, []
    for name, (dtype, dims, inner) in tensors.items():
        found[name] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + len(inner)]}
        at += len(inner)
        parts.append(inner)
    return sealed(found, b"".join(parts))


def sealed(head: Any, body: bytes) -> bytes:
    told = json.dumps(head).encode()
    return len(told).to_bytes(8, "little") + told + body


def onnx(data: bytes, rng: random.Random, words: list[str], raw: Raw) -> bytes:
    """A graph whose document or one of whose tensors is made odd. Raises an error of protobuf where it is none."""
    from onnx import ModelProto

    proto = ModelProto.FromString(data)
    if rng.random() < 0.5 and proto.metadata_props:
        proto.metadata_props[0].value = document(proto.metadata_props[0].value.encode(), rng, words).decode()
        return bytes(proto.SerializeToString())
    one, how = rng.choice(proto.graph.initializer), rng.randrange(4)
    if how == 0:
        one.data_type = rng.randrange(24)
    elif how == 1:
        dims = [min(dim, 2**62) for dim in shape(list(one.dims), rng)]
        del one.dims[:]
        one.dims.extend(dims)
    elif how == 2:
        one.raw_data = bytes_of(one.raw_data, rng, 2 * len(one.raw_data) + 8, raw)
    else:
        one.name = rng.choice(proto.graph.initializer).name
    return bytes(proto.SerializeToString())
