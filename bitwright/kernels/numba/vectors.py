"""The inner loops of scans as vector instructions.

Nibbles: 32 documents look theirs up in a register, 16 bytes being a table. A form is how a machine shuffles bytes by 4-bit
indices; AVX-512 takes two rows of a block at a time, so two tables at a time. Bytes are summed as far as they fit 8 bits, then as
16-bit words without unpacking them: `all` sums whole words, `high` their upper bytes, and at the end even documents are
all - (high << 8), odd ones high. Bits: documents are xored with the query and counted, four together.
"""

from collections.abc import Callable
from functools import cache, reduce
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

I8, I16, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(64)
LANES = 32


class Form(NamedTuple):
    """`look(builder, table, index)` shuffles vectors of `lanes` bytes."""

    lanes: int
    look: Callable[[Any, Any, Any], Any]


def shuffle(name: str, lanes: int) -> Callable[[Any, Any, Any], Any]:
    """One instruction of `lanes` bytes, on as many parts of 16, 32 or 64 bytes as a vector has."""

    def look(builder: Any, table: Any, index: Any) -> Any:
        kind = ir.VectorType(I8, lanes)
        call = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
        if index.type == kind:
            return builder.call(call, [table, index])
        halves = [[builder.shuffle_vector(v, v, mask(range(at, at + lanes))) for v in (table, index)] for at in (0, lanes)]
        return builder.shuffle_vector(*(builder.call(call, half) for half in halves), mask(range(2 * lanes)))

    return look


FORMS = {
    "avx512": Form(64, shuffle("llvm.x86.avx512.pshuf.b.512", 64)),
    "avx2": Form(32, shuffle("llvm.x86.avx2.pshuf.b", 32)),
    "neon": Form(32, shuffle("llvm.aarch64.neon.tbl1.v16i8", 16)),
}


@cache
def forms() -> tuple[str, ...]:
    """Those that this machine has, the fastest first; "scalar" is always among them."""
    triple, _, told = cpu_target.target_context.codegen().magic_tuple()  # what Numba compiles for, which its settings can narrow
    features, arm = told.split(","), triple.startswith(("aarch64", "arm64"))
    there = {"avx512": "+avx512bw" in features, "avx2": "+avx2" in features, "neon": arm}
    return (*(name for name, has in there.items() if has), "scalar")


def mask(lanes: Any) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))


def splat(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


@intrinsic(prefer_literal=True)
def sums(
    typing: Any, form: Any, deep: Any, blocks: Any, ahead: Any, data: Any, rows: Any, tables: Any, group: Any, out: Any
) -> Any:
    """16-bit sums [blocks, 32] of neighbouring blocks of codes. The first four are known to the compiler; addresses are integers.

    tables [2, rows, 16]: those of the low nibbles, then those of the high ones. Deep: `group` rows fit 8 bits together. Ahead:
    ask for the blocks that follow.
    """
    tile = (
        Tile(FORMS[form.literal_value], deep.literal_value, blocks.literal_value, ahead.literal_value)
        if form.literal_value in FORMS
        else None
    )

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if tile:
            tile.emit(builder, *arguments[4:])
        return context.get_dummy_value()

    return types.void(form, deep, blocks, ahead, *[types.int64] * 5), emit


class Tile(NamedTuple):
    form: Form
    deep: bool
    blocks: int
    ahead: bool

    @property
    def bytes(self) -> Any:
        return ir.VectorType(I8, self.form.lanes)

    @property
    def words(self) -> Any:
        return ir.VectorType(I16, self.form.lanes // 2)

    def emit(self, builder: Any, data: Any, rows: Any, tables: Any, group: Any, out: Any) -> None:
        held = [[cgutils.alloca_once_value(builder, splat(self.words, 0)) for _ in range(2)] for _ in range(self.blocks)]
        step = self.form.lanes // LANES
        if self.deep:
            short = [cgutils.alloca_once(builder, self.bytes) for _ in range(self.blocks)]
            stride = builder.mul(group, I64(step))
            with cgutils.for_range_slice(builder, I64(0), rows, stride, inc=True) as (first, _):
                end = builder.add(first, stride)
                end = builder.select(builder.icmp_signed("<", end, rows), end, rows)
                for byte in short:
                    builder.store(splat(self.bytes, 0), byte)
                with cgutils.for_range_slice(builder, first, end, I64(step), inc=True) as (p, _):
                    for byte, more in zip(short, self.row(builder, data, rows, tables, p)):
                        builder.store(builder.add(builder.load(byte), more), byte)
                for pair, byte in zip(held, short):
                    self.widen(builder, pair, builder.load(byte))
        else:
            with cgutils.for_range_slice(builder, I64(0), rows, I64(step), inc=True) as (p, _):
                for pair, more in zip(held, self.row(builder, data, rows, tables, p)):
                    self.widen(builder, pair, more)
        for b, pair in enumerate(held):
            at = builder.add(out, I64(2 * LANES * b))
            builder.store(self.ordered(builder, pair), builder.inttoptr(at, ir.VectorType(I16, LANES).as_pointer()), align=2)

    def row(self, builder: Any, data: Any, rows: Any, tables: Any, p: Any) -> list[Any]:
        """What row p (and p + 1, if the form takes two) adds to every block: the sum of a low and a high table."""
        at, size = builder.mul(p, I64(LANES)), builder.mul(rows, I64(LANES))
        low, high = (self.table(builder, tables, p, *half) for half in ((), (rows,)))
        found = []
        if self.ahead:
            for line in range(0, self.blocks * self.form.lanes, 64):
                ahead = builder.add(builder.mul(builder.add(size, at), I64(self.blocks)), I64(line))
                fetch(builder, builder.add(data, ahead))
        for b in range(self.blocks):
            codes = self.load(builder, data, at, builder.mul(size, I64(b)))
            first = self.form.look(builder, low, builder.and_(codes, splat(self.bytes, 15)))
            last = self.form.look(builder, high, builder.lshr(codes, splat(self.bytes, 4)))
            found.append(builder.add(first, last))
        return found

    def table(self, builder: Any, tables: Any, *rows: Any) -> Any:
        """The 16 bytes of each row that the form takes at once, for each of its halves: memory holds them once."""
        small = ir.VectorType(I8, self.form.lanes // 2)
        address = builder.add(tables, builder.mul(reduce(builder.add, rows), I64(16)))
        held = builder.load(builder.inttoptr(address, small.as_pointer()), align=1)
        return builder.shuffle_vector(held, held, mask([lane // LANES * 16 + lane % 16 for lane in range(self.form.lanes)]))

    def load(self, builder: Any, address: Any, *more: Any) -> Any:
        for offset in more:
            address = builder.add(address, offset)
        return builder.load(builder.inttoptr(address, self.bytes.as_pointer()), align=1)

    def widen(self, builder: Any, pair: Any, summed: Any) -> None:
        word = builder.bitcast(summed, self.words)
        for held, more in zip(pair, (word, builder.lshr(word, splat(self.words, 8)))):
            builder.store(builder.add(builder.load(held), more), held)

    def ordered(self, builder: Any, pair: Any) -> Any:
        """The sums of 32 documents in their order; a vector of two rows has them in halves."""
        every, high = (builder.load(part) for part in pair)
        even = builder.sub(every, builder.shl(high, splat(self.words, 8)))
        half = LANES // 2
        even, high = (
            sum_of(builder, [builder.shuffle_vector(v, v, mask(range(at, at + half))) for at in range(0, self.words.count, half)])
            for v in (even, high)
        )
        return builder.shuffle_vector(even, high, mask([lane // 2 + half * (lane % 2) for lane in range(LANES)]))


def sum_of(builder: Any, parts: list[Any]) -> Any:
    return builder.add(*parts) if len(parts) == 2 else parts[0]


def fetch(builder: Any, address: Any) -> None:
    """Ask for the bytes there, which are read soon; there may be none."""
    pointer, number = I8.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(call, [builder.inttoptr(address, pointer), number(0), number(3), number(1)])


@intrinsic
def single(typing: Any, value: Any) -> Any:
    """A factor as fp32: fp16 comes as uint16, for Numba has no such arrays."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType()) if halves else arguments[0]

    halves = value == types.uint16
    return types.float32(value), emit


@intrinsic
def popcount(typing: Any, word: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return word(word), emit


@intrinsic(prefer_literal=True)
def agreeing(typing: Any, words: Any, codes: Any, query: Any, out: Any) -> Any:
    """How many of 64 `words` bits agree, 16-bit numbers of four neighbouring documents; `words` is known to the compiler.

    Lanes are counted, documents shifted into the quarters of a word, and lanes summed for all four at once.
    """
    number = words.literal_value
    lanes = next(size for size in (8, 4, 2, 1) if number % size == 0)
    kind = ir.VectorType(I64, lanes)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, data, asked, to = arguments

        def load(address: Any, word: int) -> Any:
            place = builder.inttoptr(builder.add(address, I64(8 * word)), kind.as_pointer())
            return builder.load(place, align=1)

        total, count = splat(kind, 0), ir.FunctionType(kind, [kind])
        ctpop = cgutils.get_or_insert_function(builder.module, count, f"llvm.ctpop.v{lanes}i64")
        for document in range(4):
            for word in range(0, number, lanes):
                differ = builder.call(ctpop, [builder.xor(load(data, document * number + word), load(asked, word))])
                total = builder.add(total, builder.shl(differ, splat(kind, 16 * document)))
        while total.type.count > 1:
            half = total.type.count // 2
            parts = [builder.shuffle_vector(total, total, mask(range(at, at + half))) for at in (0, half)]
            total = builder.add(*parts)
        differ = builder.extract_element(total, ir.IntType(32)(0))
        agree = builder.sub(I64(64 * number * 0x0001000100010001), differ)
        builder.store(agree, builder.inttoptr(to, I64.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64, types.int64), emit
