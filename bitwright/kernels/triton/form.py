"""What a plane of codes becomes on a GPU: words in the order of tensor cores, scales beside them, tables as bytes."""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.kernels.planes import Plane, Words
from bitwright.kernels.triton import words as lay
from bitwright.kernels.triton.words import BLOCK, TILE

FEW, MOST = 16, 64  # tokens that codes are multiplied by in one pass; up to which further passes are cheaper than decoding
WIDTHS = {1: (1,), 2: (2,), 3: (3,), 4: (4,), 5: (5,), 6: (6,), 7: (8,), 8: (8,)}
LARGEST = 32639  # 127 * 256 + 127


class Made(NamedTuple):
    """A plane as the kernels take it. `step`: blocks that are loaded ahead at most; `zero`: None where all are the `same`."""

    pieces: tuple[int, ...]
    w: Ints[Tensor, "tiles blocks _ 32 4"]
    v: Ints[Tensor, "tiles blocks _ 32 4"] | None
    scale: Float[Tensor, "tiles groups 8 8"]
    zero: Float[Tensor, "tiles groups 8 8"] | None
    same: float
    table: Ints[Tensor, "values"] | None
    values: tuple[int, ...] | None
    group: int
    step: int
    tickets: Ints[Tensor, "passes tiles"]

    @property
    def blocks(self) -> int:
        return self.w.shape[1]

    def ahead(self, tokens: int) -> int:
        """Blocks that a step loads and multiplies: with few tokens many programs, which need few registers, hide more."""
        return 1 if tokens == 4 and self.pieces[0] >= 4 else self.step

    def constants(self, kind: torch.dtype, compiled: bool) -> dict[str, Any]:
        types = {torch.int8: tl.int8, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
        found: dict[str, Any] = {"ASM": "", "WHERE": "", "KINDS": types[kind]}
        if compiled and (self.table is None or len(self.table) == 16):
            found = lay.assembly(self.pieces, kind, self.values)
        first, second = (*self.pieces, 0)[:2]
        return {**found, "B1": first, "B2": second, "GROUP": self.group}


def declines(plane: Plane | Words) -> str | None:
    if isinstance(plane, Words):
        return "its codes are vectors"
    fits = plane.group % BLOCK == 0 or plane.group in (16, 32) or plane.scale.shape[1] == 1
    return None if fits else f"its groups of {plane.group} columns do not fit blocks of {BLOCK}"


def worded(plane: Plane) -> list[Made]:
    (out, k), single = plane.codes.shape, plane.scale.shape[1] == 1
    tiles, blocks = -(-out // TILE), -(-k // BLOCK)
    bits = plane.bits if plane.table is None else max(4, plane.bits)
    step = 2 if single or max(plane.group, 2 * BLOCK) % min(plane.group, 2 * BLOCK) == 0 else 1
    width = -(-blocks // step) * step * BLOCK
    group = width if single else plane.group
    codes = plane.codes.new_zeros(tiles * TILE, width)
    codes[:out, :k] = plane.codes
    pieces = lay.PIECES[bits]
    made = [lay.words(codes, b, sum(pieces[:i]), plane.table is not None and b == 4) for i, b in enumerate(pieces)]
    w, v = made[0], made[1] if len(made) > 1 else None
    zeros = plane.zero - 128 if plane.table is None and bits == 8 else plane.zero  # bytes have a sign
    same = float(zeros[0, 0])
    groups = -(-width // group)
    zero = None if bool((zeros == same).all()) else lay.rows(zeros, tiles, groups)
    tickets = torch.zeros(MOST // FEW, tiles, dtype=torch.int32, device=codes.device)
    rest = (group, step, tickets)
    if plane.table is None:
        return [Made(pieces, w, v, lay.rows(plane.scale, tiles, groups), zero, same, None, None, *rest)]
    return [
        Made(pieces, w, v, lay.rows(plane.scale * size, tiles, groups), zero, same, table, tuple(table.tolist()), *rest)
        for size, table in whole(plane.table, 2**bits)
    ]


def whole(table: Float[Tensor, "values"], count: int) -> list[tuple[float, Ints[Tensor, "count"]]]:
    """A table as bytes times a size: one where all values are multiples of the smallest, or the upper and lower byte of 16 bits."""
    full = table.new_zeros(count).double()
    full[: len(table)] = table.double()
    least = float(full[full != 0].abs().min())
    if float((full / least - (full / least).round()).abs().max()) < 1e-6 and float(full.abs().max()) <= 127 * least:
        return [(least, (full / least).round().to(torch.int8))]
    size = float(full.abs().max()) / LARGEST
    values = (full / size).round().long()
    upper = (values + 128) >> 8
    return [(256 * size, upper.to(torch.int8)), (size, (values - 256 * upper).to(torch.int8))]


def assembles(x: Tensor) -> bool:
    """Whether NVIDIA's instructions can be written into a kernel."""
    return x.is_cuda and torch.version.cuda is not None
