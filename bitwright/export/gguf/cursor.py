"""A place in the head of a GGUF file, and what can be read there: numbers, texts and values, never past the end.

The file is not trusted. Every count is compared with the bytes that are left before anything of that size is made, so that reading
takes time and memory in proportion to the file, whatever its counts claim.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool

from bitwright.errors import BadRequest
from bitwright.export.gguf.types import ARRAY, BOOL, NUMBERS, STRING

MAX_DEPTH = 4  # arrays in arrays; llama.cpp knows one level
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def shown(name: str) -> str:
    """A name of any length and content as it may stand in a sentence."""
    return repr(name if len(name) <= 80 else f"{name[:80]}..")


class Cursor:
    """Reads little-endian values one after the other. Raises BadRequest where the file ends or holds nonsense."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def damaged(self, what: str) -> NoReturn:
        raise BadRequest(f"{self.path} is damaged: {what}; download or write it again.")

    def room(self, count: int, each: int, what: str) -> None:
        """That `count` things of at least `each` bytes can follow."""
        if count * each > self.size - self.at:
            raise BadRequest(
                f"{self.path} is truncated or damaged: {what} at byte {self.at} takes {count * each} bytes or more, "
                f"but {self.size - self.at} are left; download or write it again."
            )

    def take(self, size: int, what: str) -> bytes:
        self.room(size, 1, what)
        self.at += size
        return self.data[self.at - size : self.at]

    def u32(self, what: str) -> int:
        return int(U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(U64.unpack(self.take(8, what))[0])

    def text(self, what: str) -> str:
        raw = self.take(self.u64(what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.damaged(f"{what} before byte {self.at} is not UTF-8")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """Numbers as numpy scalars and arrays, which keep their type; bool, str, and lists of str or of arrays."""
        if kind in NUMBERS:
            return np.frombuffer(self.take(NUMBERS[kind].itemsize, what), NUMBERS[kind])[0]
        if kind == BOOL:
            return bool(self.flags(1, what)[0])
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY:
            self.damaged(f"{what} has the unknown value type {kind}")
        if depth == MAX_DEPTH:
            self.damaged(f"{what} nests arrays more than {MAX_DEPTH} deep")
        inner, count = self.u32(what), self.u64(what)
        if inner in NUMBERS:
            self.room(count, NUMBERS[inner].itemsize, what)
            return np.frombuffer(self.take(count * NUMBERS[inner].itemsize, what), NUMBERS[inner])
        if inner == BOOL:
            return self.flags(count, what)
        if inner not in (STRING, ARRAY):
            self.damaged(f"{what} is an array of the unknown value type {inner}")
        self.room(count, 12 if inner == ARRAY else 8, what)
        return [self.value(inner, what, depth + 1) for _ in range(count)]

    def flags(self, count: int, what: str) -> Bool[np.ndarray, "count"]:
        stored = np.frombuffer(self.take(count, what), np.uint8)
        if count and stored.max() > 1:
            self.damaged(f"{what} is neither true nor false")
        return stored.view(np.bool_)
