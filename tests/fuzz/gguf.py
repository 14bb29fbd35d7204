"""GGUF files taken apart and put together with one value or one tensor made odd. It parses only what is whole."""

import random
import struct
from typing import Any

from fuzz.mutations import NUMBERS, Raw, bytes_of, filled, product, shape

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a metadata value by its type
TEXT, LIST = 8, 9


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError("the file ends")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> bytes:
        return self.take(self.number(8))

    def value(self, kind: int, depth: int = 0) -> bytes:
        """The bytes of a value as they stand there."""
        begin = self.at
        if kind in WIDTHS:
            self.take(WIDTHS[kind])
        elif kind == TEXT:
            self.text()
        elif kind == LIST and depth < 5:
            inner, count = self.number(4), self.number(8)
            for _ in range(count):
                self.value(inner, depth + 1)
        else:
            raise ValueError("no known type")
        return self.data[begin : self.at]


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def value(rng: random.Random, words: list[str]) -> tuple[int, bytes]:
    """Any value of any type."""
    kind, number = rng.randrange(13), rng.choice(NUMBERS)
    if kind in (6, 12):
        return kind, struct.pack("<f" if kind == 6 else "<d", rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30, 2.0]))
    if kind == TEXT:
        return kind, text(rng.choice(words).encode())
    if kind == LIST:
        inner, some = rng.choice([4, 5, 10]), rng.randrange(4)
        return kind, struct.pack("<IQ", inner, some) + (number % 2**32).to_bytes(WIDTHS[inner], "little") * some
    return kind, (number % 256 ** WIDTHS[kind]).to_bytes(WIDTHS[kind], "little")


def gguf(data: bytes, rng: random.Random, words: list[str], raw: Raw, kinds: dict[int, Any]) -> bytes:
    """`kinds`: number of a tensor type -> (weights, bytes) of its blocks. Raises ValueError and its kin where it is none."""
    file = Reader(data)
    head, count, pairs_count = file.take(8), file.number(8), file.number(8)
    pairs, infos = [], []
    for _ in range(pairs_count):
        key, kind = file.text(), file.number(4)
        pairs.append((key, kind, file.value(kind)))
    for _ in range(count):
        name = file.text()
        infos.append((name, [file.number(8) for _ in range(file.number(4))], file.number(4), file.number(8)))
    start = -(-file.at // 32) * 32
    tensors = [(name, dims, kind, data[start + at :][: size(dims, kind, kinds)]) for name, dims, kind, at in infos]
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.5:
            spoil(pairs, rng, words)
        else:
            bend(tensors, rng, raw, kinds)
    return put(head, pairs, tensors)


def size(dims: list[int], kind: int, kinds: dict[int, Any]) -> int:
    weights, nbytes = kinds.get(kind, (1, 1))
    return int(product(dims) // weights * nbytes)


def spoil(pairs: list[tuple[bytes, int, bytes]], rng: random.Random, words: list[str]) -> None:
    at, how = rng.randrange(len(pairs)), rng.randrange(4)
    key, kind, held = pairs[at]
    if how == 0:
        del pairs[at]
    elif how == 1:
        pairs[at] = (rng.choice([rng.choice(words).encode(), rng.choice(pairs)[0]]), kind, held)
    elif how == 2 and kind in WIDTHS and kind not in (6, 7, 12):  # another number of the same type
        pairs[at] = (key, kind, (rng.choice(NUMBERS) % 256 ** WIDTHS[kind]).to_bytes(WIDTHS[kind], "little"))
    elif how == 3:  # a key that readers know
        pairs.append((rng.choice([w for w in words if "." in w] or words).encode(), *value(rng, words)))
    else:
        pairs[at] = (key, *value(rng, words))


def bend(tensors: list[tuple[bytes, list[int], int, bytes]], rng: random.Random, raw: Raw, kinds: dict[int, Any]) -> None:
    at, how = rng.randrange(len(tensors)), rng.randrange(5)
    name, dims, kind, inner = tensors[at]
    if how == 0:
        kind = rng.choice([*kinds, 99])
    elif how == 1:
        dims = [dim % 2**63 for dim in shape(dims, rng)]
    elif how == 2:
        inner = bytes_of(inner, rng, len(inner), raw)
    elif how == 3:
        name = rng.choice([rng.choice(tensors)[0], b"rope_freqs.weight", name.replace(b"weight", b"bias")])
    else:
        del tensors[at : at + (len(tensors) > 1)]
        return
    tensors[at] = name, dims, kind, filled(inner, size(dims, kind, kinds))


def put(head: bytes, pairs: list[tuple[bytes, int, bytes]], tensors: list[tuple[bytes, list[int], int, bytes]]) -> bytes:
    told = head + struct.pack("<QQ", len(tensors), len(pairs))
    told += b"".join(text(key) + struct.pack("<I", kind) + held for key, kind, held in pairs)
    body = b""
    for name, dims, kind, inner in tensors:
        told += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(body))
        body += inner + bytes(-len(inner) % 32)
    return told + bytes(-len(told) % 32) + body
