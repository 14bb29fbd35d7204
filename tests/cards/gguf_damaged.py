"""Card formats, section 3: GGUF files that are not as they should be: refused in one sentence, or read without harm."""

import gc
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitwright.errors import BadRequest
from bitwright.export.gguf import llama
from bitwright.export.gguf.container import Container, read
from bitwright.export.gguf.writer import write


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: str | bytes = "t", dims: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 1) + b"\1"


def made(
    tensors: tuple[bytes, ...] = (), pairs: tuple[bytes, ...] = (), counts: tuple[int, int] | None = None, room: int = 4096
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(pairs)))) + b"".join((*pairs, *tensors))
    return head + bytes(-len(head) % 32 + room)


GOOD = made((tensor(),))
BAD = {
    "an empty file": (b"", "is empty"),
    "another magic": (b"GGML" + GOOD[4:], "is not a GGUF file.*give a file"),
    "only a part of the magic": (b"GG", "truncated"),
    "version 1": (GOOD[:4] + b"\1" + GOOD[5:], "version 1.*convert"),
    "version 4": (GOOD[:4] + b"\4" + GOOD[5:], "version 4.*convert"),
    "version 0": (GOOD[:4] + b"\0" + GOOD[5:], "version 0.*convert"),
    "a big-endian file": (b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + GOOD[24:], "big-endian.*convert"),
    "no counts": (GOOD[:20], "number of metadata values.*download"),
    "very many tensors": (made((tensor(),), counts=(2**63, 0)), "list of 9223372036854775808 tensors"),
    "very many values": (made((tensor(),), counts=(1, 2**64 - 1)), "list of 18446744073709551615 metadata"),
    "some more tensors than there are": (made((tensor(),), counts=(60, 0)), "has 0 dimensions"),
    "a long key": (made(pairs=(struct.pack("<Q", 2**62) + bytes(16),)), "metadata key.* takes 4611686018427387904"),
    "a long text": (made(pairs=(pair("k", 8, struct.pack("<Q", 5000)),)), "'k'.* takes 5000"),
    "a long array": (made(pairs=(pair("k", 9, struct.pack("<IQ", 4, 2**61)),)), "'k'.* takes 9223372036854775808"),
    "a long array of texts": (made(pairs=(pair("k", 9, struct.pack("<IQ", 8, 2**40)),)), "'k'.* takes 8796093022208"),
    "a long array of flags": (made(pairs=(pair("k", 9, struct.pack("<IQ", 7, 5000)),)), "'k'.* takes 5000"),
    "a long array of arrays": (made(pairs=(pair("k", 9, struct.pack("<IQ", 9, 400)),)), "'k'.* takes 4800"),
    "a deep array": (made(pairs=(pair("k", 9, nested(5)),)), "'k' nests arrays more than 4"),
    "a value type": (made(pairs=(pair("k", 13, bytes(8)),)), "'k' has the unknown value type 13"),
    "an array type": (made(pairs=(pair("k", 9, struct.pack("<IQ", 77, 1)),)), "'k' is an array of the unknown value type 77"),
    "a flag": (made(pairs=(pair("k", 7, b"\2"),)), "'k' is neither true nor false"),
    "a key twice": (made(pairs=(pair("k", 0, b"\1"),) * 2), "'k' appears twice"),
    "a key in Latin-1": (made(pairs=(pair("ü".encode("latin-1"), 0, b"\1"),)), "metadata key.* not UTF-8"),
    "a text in Latin-1": (made(pairs=(pair("k", 8, text("ü".encode("latin-1"))),)), "'k'.* not UTF-8"),
    "alignment 0": (made(pairs=(pair("general.alignment", 4, struct.pack("<I", 0)),)), "power of two"),
    "alignment 48": (made(pairs=(pair("general.alignment", 4, struct.pack("<I", 48)),)), "power of two"),
    "alignment of another type": (made(pairs=(pair("general.alignment", 10, struct.pack("<Q", 32)),)), "power of two"),
    "alignment in words": (made(pairs=(pair("general.alignment", 8, text("32")),)), "power of two"),
    "a name in Latin-1": (made((tensor("ü".encode("latin-1")),)), "tensor name.* not UTF-8"),
    "a name twice": (made((tensor(), tensor(offset=256))), "'t' appears twice"),
    "no dimensions": (made((tensor(dims=()),)), "'t' has 0 dimensions"),
    "five dimensions": (made((tensor(dims=(32, 1, 1, 1, 1)),)), "'t' has 5 dimensions"),
    "very many dimensions": (made((text("t") + struct.pack("<I", 2**32 - 1),)), "'t' has 4294967295 dimensions"),
    "a dimension of 0": (made((tensor(dims=(32, 0)),)), "'t' has a dimension of 0"),
    "half a block": (made((tensor(dims=(48, 2), kind=2),)), "'t' has rows of 48 weights.*Q4_0 blocks of 32"),
    "an unaligned tensor": (made((tensor(offset=40),)), "'t' begins at 40.*not aligned to 32"),
    "a tensor outside": (made((tensor(offset=2**63),)), "'t' ends at byte 9223372036854776"),
    "a tensor partly outside": (made((tensor(offset=4096 - 224),)), "'t' ends at byte"),
    "an unknown tensor outside": (made((tensor(kind=99, offset=2**40),)), "'t' begins at byte .*outside"),
    "a huge tensor": (made((tensor(dims=(2**63, 2**63, 2**63, 2**63)),)), "'t' ends at byte"),
    "a tensor that wraps around": (made((tensor(dims=(2**32, 2**32)),)), "'t' ends at byte"),
    "overlapping tensors": (made((tensor(offset=64), tensor("u"))), "'u' and 't' overlap"),
    "two tensors at one place": (made((tensor(), tensor("u", kind=99))), "overlap"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence(case: str, tmp_path: Path):
    data, words = BAD[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(BadRequest, match=words) as refused:
        read(path)
    said = str(refused.value).replace(str(path), "FILE")
    assert (said.endswith(".") and ". " not in said and ";" in said) or "convert" in said


def test_what_is_no_file_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BadRequest, match="There is no file"):
            read(path)


def test_a_tensor_of_an_unknown_type_stops_only_who_asks_for_it(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(made((tensor(), tensor("new", kind=99, offset=256))))
    found = read(path)
    assert found.tensors["new"].type == "unknown 99" and found.tensors["new"].nbytes is None
    assert found.data("t").shape == (2, 128)
    with pytest.raises(BadRequest, match=r"'new'.*unknown 99.*convert"):
        found.data("new")
    with pytest.raises(BadRequest, match="no tensor 'other'"):
        found.data("other")
    path.write_bytes(GOOD[:-4000])
    with pytest.raises(BadRequest, match="has it changed"):
        found.data("t")


def test_a_long_name_does_not_fill_the_screen(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(made((tensor("n" * 100_000, dims=()),)))
    with pytest.raises(BadRequest) as refused:
        read(path)
    assert len(str(refused.value)) < 400


def test_numbers_of_which_transformers_builds_no_model_are_refused():
    with pytest.raises(BadRequest, match="builds no model of this configuration"):
        llama.configured({"model_type": "llama", "hidden_size": 256, "num_attention_heads": 7, "head_dim": 8})


# --- any bytes ---------------------------------------------------------------------------------------------------------------


def harmless(path: Path, data: bytes, seconds: float = 0.05) -> Container | None:
    """A Container whose tensors can all be read or a BadRequest, soon, in memory proportional to the file."""
    path.write_bytes(data)
    gc.disable()  # what earlier tests left is not our time
    tracemalloc.start()
    begin, found = time.process_time(), None
    try:
        found = read(path)
        for info in found.tensors.values():
            assert info.offset + (info.nbytes or 1) <= len(data)
            if info.nbytes is not None:
                assert found.data(info.name).numel() == info.nbytes
    except BadRequest:
        pass
    finally:
        took, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.enable()
    assert peak < 2**16 + 40 * len(data) and took < seconds
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A small valid file with values of every kind; it was read once, so that nothing is measured for the first time."""
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    values = {f"a.{kind}": np.dtype(kind).type(3) for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")}
    lists = {"words": ["a", "", "größer"], "numbers": np.arange(4, dtype=np.int32), "flags": np.array([True, False])}
    metadata = {"general.architecture": "llama", "yes": True, **values, **lists, "nested": [["a"], ["b", "c"]]}
    infos = {"q": ((2, 32), "Q4_0"), "n": ((3,), "F32"), "e": ((2, 2, 32), "Q8_0")}
    write(path, metadata, infos, ((n, torch.ones(1, size, dtype=torch.uint8)) for n, size in (("q", 36), ("n", 12), ("e", 136))))
    read(path)
    return path, path.read_bytes()


fuzzed: Callable[[Any], Any] = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_file_cut_anywhere_is_refused(small: tuple[Path, bytes]):
    path, data = small
    path.write_bytes(data)
    end = max(info.offset + (info.nbytes or 0) for info in read(path).tensors.values())
    for cut in {*range(0, len(data), 3), *range(32), end - 1, end, end + 1}:
        assert (harmless(path, data[:cut]) is None) == (cut < end)


@fuzzed
@given(st.data())
def test_a_file_changed_anywhere_is_read_or_refused(small: tuple[Path, bytes], drawn: Any):
    path, data = small
    changed = bytearray(data)
    for _ in range(drawn.draw(st.integers(1, 4))):
        at = drawn.draw(st.integers(0, len(changed) - 1))
        how, some = (
            drawn.draw(st.sampled_from(["flip", "replace", "insert", "remove"])),
            drawn.draw(st.binary(min_size=1, max_size=9)),
        )
        if how == "flip":
            changed[at] ^= some[0] or 1
        elif how == "replace":
            changed[at : at + len(some)] = some
        elif how == "insert":
            changed[at:at] = some
        else:
            del changed[at : at + len(some)]
    harmless(path, bytes(changed))


@fuzzed
@given(st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_a_number_of_eight_bytes_anywhere_is_read_or_refused(small: tuple[Path, bytes], number: int, at: int):
    path, data = small
    place = at % (len(data) - 8)
    harmless(path, data[:place] + struct.pack("<Q", number) + data[place + 8 :])


@fuzzed
@given(st.sampled_from([b"GGUF", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + struct.pack("<QQ", 1, 1)]), st.binary(max_size=400))
def test_random_bytes_after_the_magic_are_read_or_refused(small: tuple[Path, bytes], begin: bytes, rest: bytes):
    harmless(small[0], begin + rest)


@pytest.mark.parametrize("kind", ["texts", "arrays", "keys", "tensors"])
def test_reading_takes_time_and_memory_in_proportion(kind: str, small: tuple[Path, bytes]):
    """Thousands of the smallest things there are: memory by the byte, and ten times as many take about ten times as long."""

    def data(n: int) -> bytes:
        if kind == "tensors":
            return made(tuple(tensor(f"{i}", (1,), 24, 32 * i) for i in range(n)), room=32 * n)
        if kind == "keys":
            return made(pairs=tuple(pair(f"{i}", 0, b"\1") for i in range(n)))
        inner, item = (8, bytes(8)) if kind == "texts" else (9, struct.pack("<IQ", 0, 0))
        return made(pairs=(pair("k", 9, struct.pack("<IQ", inner, n) + item * n),))

    times = []
    for n in (400, 4000):
        small[0].write_bytes(data(n))
        found, spent = read(small[0]), []
        for _ in range(3):  # the best: others' objects are collected in between
            begin = time.process_time()
            read(small[0])
            spent.append(time.process_time() - begin)
        times.append(min(spent))
        assert len(found.tensors if kind == "tensors" else found.metadata if kind == "keys" else found.metadata["k"]) == n
    assert times[1] < 30 * times[0] + 0.05
    harmless(small[0], data(400), seconds=2)
