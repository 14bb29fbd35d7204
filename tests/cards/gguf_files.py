"""Card formats, section 3: the GGUF file. the `gguf` library reads what we write, we read what it writes."""

import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.container import Container, read
from bitwright.export.gguf.types import KINDS
from bitwright.export.gguf.writer import write

gguf = pytest.importorskip("gguf")

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.u8": np.uint8(200), "a.i8": np.int8(-100), "a.u16": np.uint16(60000), "a.i16": np.int16(-30000),
    "a.u32": np.uint32(4_000_000_000), "a.i32": np.int32(-2_000_000_000), "a.u64": np.uint64(2**63 + 1),
    "a.i64": np.int64(-(2**62)), "a.f32": np.float32(0.1), "a.f64": np.float64(0.1), "a.float": 1e-5,
    "a.yes": True, "a.no": np.bool_(False), "a.text": "Füße\n\0", "a.nothing": "",
    "b.words": ["a", "", "größer", "x" * 300], "b.numbers": np.arange(-5, 5, dtype=np.int32),
    "b.bytes": np.arange(5, dtype=np.uint8),
    "b.floats": np.linspace(0, 1, 7, dtype=np.float32), "b.flags": np.array([True, False, True]), "b.listed": [1.5, 2.5],
    "b.wide": np.array([2**60, -1]),
}  # fmt: skip

TENSORS: dict[str, tuple[tuple[int, ...], str]] = {
    "token_embd.weight": ((6, 256), "Q4_K"), "norm.weight": ((7,), "F32"), "q.weight": ((5, 64), "Q8_0"),
    "experts.weight": ((3, 4, 32), "Q4_0"), "conv.weight": ((2, 3, 4, 5), "F16"), "t.weight": ((1, 256), "TQ1_0"),
    "b.weight": ((3, 5), "BF16"), "i.weight": ((3,), "I8"),
}  # fmt: skip


def contents(tensors: dict[str, tuple[tuple[int, ...], str]] = TENSORS) -> Iterator[tuple[str, Tensor]]:
    gen = torch.Generator().manual_seed(0)
    for name, (shape, kind) in tensors.items():
        rows = int(np.prod(shape[:-1]))
        width = shape[-1] // KINDS[kind].weights * KINDS[kind].bytes
        yield name, torch.randint(0, 256, (rows, width), dtype=torch.uint8, generator=gen)


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(plain, value))
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def planned(found: Container) -> dict[str, tuple[tuple[int, ...], str]]:
    return {info.name: (info.shape, info.type) for info in found.tensors.values()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "ours.gguf"
    write(path, METADATA, TENSORS, contents())
    return path


# --- good files --------------------------------------------------------------------------------------------------------------


def test_the_library_reads_what_we_write(written: Path):
    found = gguf.GGUFReader(written)
    fields = {name: field.contents() for name, field in found.fields.items() if not name.startswith("GGUF.")}
    assert list(fields) == list(METADATA)
    for name, value in METADATA.items():
        expected = np.float32(value).item() if type(value) is float else plain(value)
        assert fields[name] == expected, name
    kinds = {"a.u8": "UINT8", "a.i16": "INT16", "a.u64": "UINT64", "a.float": "FLOAT32", "a.f64": "FLOAT64", "a.no": "BOOL"}
    assert {name: found.fields[name].types[0].name for name in kinds} == kinds
    assert [k.name for k in found.fields["b.wide"].types] == ["ARRAY", "INT64"]
    tensors = dict(contents())
    assert [t.name for t in found.tensors] == list(TENSORS)
    for t in found.tensors:
        shape, kind = TENSORS[t.name]
        assert tuple(t.shape.tolist()[::-1]) == shape and t.tensor_type.name == kind
        assert t.data_offset % 32 == 0 and t.data.tobytes() == tensors[t.name].numpy().tobytes()


def test_we_read_what_we_write(written: Path):
    found = read(written)
    assert found.alignment == 32 and planned(found) == TENSORS
    assert {k: plain(v) for k, v in found.metadata.items()} == {
        k: np.float32(v).item() if type(v) is float else plain(v) for k, v in METADATA.items()
    }
    for name, value in METADATA.items():
        if isinstance(value, np.ndarray | np.number):
            assert found.metadata[name].dtype == value.dtype
    for name, data in contents():
        assert torch.equal(found.data(name), data)
        assert found.tensors[name].nbytes == data.numel()
    assert not list(written.parent.glob("*.partial"))


def test_reading_and_writing_again_gives_the_same_file(written: Path, tmp_path: Path):
    found = read(written)
    write(tmp_path / "again.gguf", found.metadata, planned(found), ((n, found.data(n)) for n in found.tensors))
    assert (tmp_path / "again.gguf").read_bytes() == written.read_bytes()


def test_we_read_what_the_library_writes(tmp_path: Path):
    out = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    out.add_uint8("u8", 1), out.add_int8("i8", -1), out.add_uint16("u16", 1), out.add_int16("i16", -1)
    out.add_uint32("u32", 7), out.add_int32("i32", -7), out.add_uint64("u64", 2**40), out.add_int64("i64", -(2**40))
    out.add_float32("f32", 0.5), out.add_float64("f64", 0.1), out.add_bool("yes", True), out.add_string("text", "grün")
    out.add_array("words", ["a", "bc", ""]), out.add_array("ints", [1, 2, -3]), out.add_array("floats", [0.5, 1.5])
    out.add_array("flags", [True, False]), out.add_array("nested", [["a"], ["b", "c"]])
    W = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
    kinds = ("F32", "F16", "Q8_0", "Q4_1", "TQ2_0", "MXFP4")
    stored = {kind: gguf.quants.quantize(W, gguf.GGMLQuantizationType[kind]) for kind in kinds}
    for kind, data in stored.items():
        out.add_tensor(f"w.{kind}", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    out.add_tensor("vector", W[0])
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    found = read(tmp_path / "theirs.gguf")
    assert {k: plain(v) for k, v in found.metadata.items()} == {
        "general.architecture": "llama", "u8": 1, "i8": -1, "u16": 1, "i16": -1, "u32": 7, "i32": -7, "u64": 2**40, "i64": -(2**40),
        "f32": 0.5, "f64": 0.1, "yes": True, "text": "grün", "words": ["a", "bc", ""], "ints": [1, 2, -3], "floats": [0.5, 1.5],
        "flags": [True, False], "nested": [["a"], ["b", "c"]],
    }  # fmt: skip
    assert planned(found) == {f"w.{kind}": ((6, 256), kind) for kind in kinds} | {"vector": ((256,), "F32")}
    for kind, data in stored.items():
        assert found.data(f"w.{kind}").numpy().tobytes() == data.tobytes()
    block = BLOCKS["F32"]
    assert torch.equal(block.decode(block.unpack(found.data("vector"))), torch.from_numpy(W[:1]))


def test_other_alignments_version_2_and_no_tensors(tmp_path: Path):
    path = tmp_path / "x.gguf"
    for alignment in (1, 8, 4096):
        write(path, {"general.alignment": np.uint32(alignment)}, TENSORS, contents())
        found = read(path)
        assert found.alignment == alignment and all(torch.equal(found.data(n), data) for n, data in contents())
        assert all(info.offset % alignment == 0 for info in found.tensors.values())
        assert [t.data_offset for t in gguf.GGUFReader(path).tensors] == [info.offset for info in found.tensors.values()]
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    assert planned(read(path)) == TENSORS
    write(path, {}, {}, [])
    assert read(path).tensors == {} and path.stat().st_size == 32


def test_nested_and_empty_arrays_are_written_as_they_were_read(tmp_path: Path):
    path, many = tmp_path / "x.gguf", struct.pack("<IQ", 9, 1)
    for value in (many * 2 + struct.pack("<IQB", 0, 1, 7), *(struct.pack("<IQ", kind, 0) for kind in (5, 7, 8))):
        data = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 9) + value
        path.write_bytes(data + bytes(-len(data) % 32))
        write(path, read(path).metadata, {}, [])
        assert path.read_bytes() == data + bytes(-len(data) % 32)


def test_writing_to_what_was_read_leaves_the_file_alone(written: Path):
    before, found = written.read_bytes(), read(written)
    found.data("norm.weight").zero_()
    assert written.read_bytes() == before and found.data("norm.weight").any()


def test_one_tensor_in_memory_at_a_time_and_only_the_asked_ones_read(tmp_path: Path):
    shape, count = (64, 32768), 6
    infos = {f"t{i}": (shape, "F16") for i in range(count)}
    chunks = ((name, torch.full((64, 65536), i, dtype=torch.uint8)) for i, name in enumerate(infos))
    tracemalloc.start()
    write(tmp_path / "x.gguf", {}, infos, chunks)
    found = read(tmp_path / "x.gguf")
    data = [found.data(name) for name in found.tensors]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 and [int(d[3, 5]) for d in data] == list(range(count))


# --- what the writer refuses -------------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_not_there(tmp_path: Path):
    path = tmp_path / "x.gguf"
    some = list(contents())
    for chunks, words in ((some[:-1], "did not come"), (some[1:], "was due"), ([*some, some[0]], "was due")):
        with pytest.raises(ValueError, match=words):
            write(path, METADATA, TENSORS, chunks)
    with pytest.raises(ValueError, match="bytes, not"):
        write(path, METADATA, TENSORS, ((n, data[:, 1:]) for n, data in some))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadRequest, match="Cannot write"):
        write(tmp_path / "nowhere" / "x.gguf", {}, {}, [])


def test_values_without_a_type_and_tensors_without_a_place_are_refused(tmp_path: Path):
    for value, words in ((7, "is a int"), ([1.0, "a"], "several types"), (None, "NoneType"), (np.zeros((2, 2)), "ndarray")):
        with pytest.raises(ValueError, match=words):
            write(tmp_path / "x", {"k": value}, {}, [])
    for alignment in (np.uint32(24), np.uint32(0), np.uint64(32)):
        with pytest.raises(ValueError, match="power of two"):
            write(tmp_path / "x", {"general.alignment": alignment}, {}, [])
    for name, shape, kind, words in (
        ("n" * 64, (1, 32), "F32", "longer than the 63 bytes"),
        ("n", (), "F32", "1 to 4 dimensions"),
        ("n", (1, 1, 1, 1, 1), "F32", "1 to 4 dimensions"),
        ("n", (3, 0), "F32", "at least 1"),
        ("n", (3, 48), "Q4_0", "whole Q4_0 blocks of 32"),
    ):
        with pytest.raises(BadRequest, match=words):
            write(tmp_path / "x", {}, {name: (shape, kind)}, [])
    assert list(tmp_path.iterdir()) == []
