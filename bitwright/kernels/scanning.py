"""Search in low-bit codes: every score is a sum of tables that nibbles look up, whatever the grid behind the nibble.

One table serves 4 dimensions of 1 bit, 2 of 2 bits, 1 of 4 bits, or any learned list of 16 points; the query may be float (its
products with the points) or coded itself. A scan reads tables rounded to a byte and keeps the best; `score` reads the float
tables at the rows that a scan has found.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from bitwright.kernels.dispatch import call

BLOCK = 32
MOST = 8192  # tables: beyond, 16 bits leave a table fewer than 8 steps
FAR = 2**31 - 1  # the distance of a document that is not there


@dataclass(frozen=True, eq=False)
class Blocked:
    """Nibble codes in the order in which they are scanned: position independent, so a file of them can be mapped as it lies.

    Byte i of row p of a block holds document i's nibble of table 2p (low half) and of table 2p + 1 (high half).
    """

    data: UInt8[Tensor, "blocks pairs 32"]
    count: int  # documents; the last block may be partly empty

    def __post_init__(self) -> None:
        if not 0 <= self.count <= len(self.data) * BLOCK < self.count + BLOCK:
            raise ValueError(
                f"{self.count} documents fill {-(-self.count // BLOCK)} blocks, not {len(self.data)}; give the count of the codes."
            )

    @classmethod
    def of(cls, nibbles: UInt8[Tensor, "n t"]) -> "Blocked":
        """Nibbles 0..15, a row per document. An odd table is joined by one whose nibble is 0."""
        n, t = nibbles.shape
        if nibbles.numel() and int(nibbles.max()) > 15:
            raise ValueError(f"A nibble is {int(nibbles.max())}, not 0 to 15; split larger codes into nibbles first.")
        blocks, pairs = -(-n // BLOCK), -(-t // 2)
        full = nibbles.new_zeros(blocks * BLOCK, 2 * pairs)
        full[:n, :t] = nibbles
        joined = full[:, 0::2] | full[:, 1::2] << 4
        return cls(joined.view(blocks, BLOCK, pairs).transpose(1, 2).contiguous(), n)

    def nibbles(self, rows: Int64[Tensor, "c"] | None = None) -> UInt8[Tensor, "n t"]:
        """Of all documents or of `rows`, one per table; a table added by `of` is among them."""
        every = self.data.transpose(1, 2)
        joined = every.flatten(0, 1)[: self.count] if rows is None else every[rows // BLOCK, rows % BLOCK]
        return torch.stack((joined & 15, joined >> 4), 2).flatten(1)

    def and_also(self, nibbles: UInt8[Tensor, "m t"]) -> "Blocked":
        """With more documents behind."""
        whole = self.count // BLOCK  # blocks that stay as they are
        rest = self.nibbles(torch.arange(whole * BLOCK, self.count))[:, : nibbles.shape[1]]
        return Blocked(joined([self.data[:whole], Blocked.of(torch.cat([rest, nibbles])).data]), self.count + len(nibbles))

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def tables(self) -> int:
        return 2 * self.data.shape[1]


def joined(parts: list[UInt8[Tensor, "_ pairs 32"]]) -> UInt8[Tensor, "blocks pairs 32"]:
    """Blocks where a scan reads them fastest: in large pages, for which NumPy asks the system and torch does not, and from the
    beginning of a cache line on."""
    size, line = sum(part.numel() for part in parts), 64
    room = np.empty(size + line, np.uint8)
    whole = torch.from_numpy(room[-room.ctypes.data % line :][:size]).view(-1, *parts[0].shape[1:])
    return torch.cat(parts, out=whole)


class Rounded(NamedTuple):
    """Tables as a scan reads them: table[q, t, c] = offset of t + scale[q] values[q, t, c]; bias is the sum of the offsets.

    Two neighbours (tables 2p and 2p + 1) add up to 255 at most, all tables of a query to 65,535.
    """

    values: UInt8[Tensor, "q t 16"]
    scale: Float32[Tensor, "q"]
    bias: Float32[Tensor, "q"]


class Found(NamedTuple):
    """Best first, lower rows first among equals. Where fewer than k documents are allowed: row -1, score -inf (distance FAR)."""

    scores: Float32[Tensor, "q k"] | Int32[Tensor, "q k"]
    rows: Int64[Tensor, "q k"]


def rounded(tables: Float32[Tensor, "q t 16"]) -> Rounded:
    """One step per query, as fine as the sums allow: the widest pair of tables spans 254, all of them 16 bits.

    Tables that are whole multiples of a step (codes against codes) keep that step where it fits: their sums are exact. Tables that
    add up over the bits of their nibble (signs, evenly spaced points, four points that mirror each other) are rounded bit by bit,
    so that they still do, for tensor cores multiply bits: an entry is off by up to 2 steps instead of a half, the sums of
    documents spread about as little. An odd table is joined by one of zeros.

    Every device gives the same bits. A query whose tables are not finite, or too far apart to be added, has a scale that is not.
    """
    q, t, _ = tables.shape
    if t > MOST:
        raise ValueError(f"{t} tables leave a table fewer than 8 steps of a 16-bit sum; scan at most {MOST}.")
    if not t:
        return Rounded(tables.to(torch.uint8), tables.new_ones(q), tables.new_zeros(q))
    return Rounded(*call("rounded", tables))


def scan(
    codes: Blocked,
    tables: Float32[Tensor, "q t 16"],
    k: int,
    factor: Float[Tensor, "n"] | None = None,
    allowed: UInt8[Tensor, "bytes"] | None = None,
) -> Found:
    """The k documents of the largest factor[i] * (bias + scale * sum over t of values[q, t, nibble(i, t)]), tables as `rounded`.

    Without factors the order is that of the integer sums, which the scores follow. `factor` is fp16 or fp32, one per document.
    `allowed` is a bitmap, document i being bit i % 8 of byte i // 8 (numpy: packbits(..., bitorder="little")).
    """
    if tables.shape[1] not in (codes.tables, codes.tables - 1):
        raise ValueError(f"The codes have {codes.tables} nibbles, the queries {tables.shape[1]} tables; encode both alike.")
    if factor is not None and len(factor) != codes.count:
        raise ValueError(f"There are {len(factor)} factors for {codes.count} documents; give one per document.")
    check(k, codes.count, allowed)
    small = rounded(tables)
    found = Found(*call("scan", codes, small, k, factor, allowed))
    if not small.scale.cpu().isfinite().all():  # read last: until then a device waits for nobody
        raise ValueError("A query's tables hold infinities or nan, or numbers too large to add; look at the query.")
    return found


def score(
    codes: Blocked, tables: Float32[Tensor, "q t 16"], rows: Int64[Tensor, "q c"], factor: Float[Tensor, "n"] | None = None
) -> Float32[Tensor, "q c"]:
    """factor[i] * sum over t of tables[q, t, nibble(i, t)] at the given rows, in fp32; -inf for row -1."""
    return call("score", codes, tables, rows, factor)


def hamming(
    codes: UInt8[Tensor, "n bytes"], queries: UInt8[Tensor, "q own"], k: int, allowed: UInt8[Tensor, "_"] | None = None
) -> Found:
    """The k documents that differ from a query in the fewest bits; scores are those numbers of bits. `allowed` as in `scan`."""
    if codes.shape[1] != queries.shape[1]:
        raise ValueError(f"The codes have {8 * codes.shape[1]} bits, the queries {8 * queries.shape[1]}; encode both alike.")
    check(k, len(codes), allowed)
    return Found(*call("hamming", codes, queries, k, allowed))


def check(k: int, count: int, allowed: UInt8[Tensor, "_"] | None) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one document.")
    if allowed is not None and len(allowed) != -(-count // 8):
        raise ValueError(f"The bitmap has {len(allowed)} bytes for {count} documents; it takes {-(-count // 8)}.")
