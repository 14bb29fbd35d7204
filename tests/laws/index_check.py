"""`bitwright index check`: every planted fault is found, and what is sound comes out sound."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.cases import of_codes, of_file
from bitwright.embed.checking import check
from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.projections import orthonormal
from bitwright.embed.views import Linear
from bitwright.errors import BadRequest

N, DIM = 1000, 64


def even() -> Tensor:
    """Vectors that signs suit: no direction is larger than another."""
    centres = torch.randn(60, DIM)
    return normalize(centres[torch.randint(60, (N,))] + 0.9 * torch.randn(N, DIM))


def uneven() -> Tensor:
    """The same with directions of unequal size, as models make them."""
    return normalize(even() * torch.logspace(0.5, -1.5, DIM))


def packed(x: Tensor) -> np.ndarray:
    return np.packbits(x.numpy() > 0, axis=1)


def integers(x: Tensor) -> np.ndarray:
    """Calibrated: the range of every coordinate over all of int8, as sentence-transformers does it."""
    low, high = x.amin(0), x.amax(0)
    return ((x - low) / (high - low) * 255 - 128).round().clamp(-128, 127).to(torch.int8).numpy()


def states(case: Any) -> dict[str, str]:
    return {verdict.test: verdict.state for verdict in check(case)}


def only(case: Any, *faults: str) -> None:
    found = states(case)
    assert {test for test, state in found.items() if state == "fault"} == set(faults), check(case)


@pytest.mark.parametrize("kind", ["bits", "signed bytes", "rotated bits", "int8", "uint8", "lengths"])
def test_sound_codes_of_other_tools_come_out_clean(kind: str):
    x = even() if kind != "lengths" else even() * (0.5 + torch.rand(N, 1))
    turned = x @ orthonormal(DIM, 3)
    codes, metric = {
        "bits": (packed(x), "cosine"),
        "signed bytes": (packed(x).view(np.int8), "cosine"),
        "rotated bits": (packed(turned), "cosine"),
        "int8": (integers(x), "cosine"),
        "uint8": (integers(x).view(np.uint8) ^ 128, "cosine"),
        "lengths": (integers(x), "ip"),
    }[kind]
    only(of_codes(codes, x, None, metric, 10))
    assert "look" not in states(of_codes(codes, x, None, metric, 10)).values()


@pytest.mark.parametrize("name", codecs.LINEAR)
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_sound_files_come_out_clean(name: str, metric: str):
    x = uneven() if metric == "cosine" else uneven() * (0.5 + torch.rand(N, 1))
    index = Index.build(codecs.fit(x, 2.0, name, metric=metric), x)
    only(of_file(index, x, None, None, 10))
    only(of_file(index, x[:600], x[:20], None, 10))


@pytest.mark.parametrize("damage", [
    lambda bits: bits ^ np.uint8(128),
    lambda bits: np.packbits(np.unpackbits(bits, axis=1), axis=1, bitorder="little"),
    lambda bits: ~bits,
    lambda bits: (bits.astype(np.int16) - 128).astype(np.int8),  # what sentence-transformers calls binary
], ids=["top bit", "order", "inverted", "minus 128"])  # fmt: skip
def test_bits_of_another_convention_are_named(damage: Any):
    x = even()
    case = of_codes(damage(packed(x)), x, None, "cosine", 10)
    only(case, "convention")
    assert not of_codes(packed(x), x, None, "cosine", 10).changed and case.changed


def test_bytes_read_with_the_wrong_sign_are_named():
    x = even()
    only(of_codes((integers(x).view(np.uint8) ^ 128).view(np.int8), x, None, "cosine", 10), "convention")


def test_signs_without_a_rotation_are_found():
    x = uneven()
    only(of_codes(packed(x), x, None, "cosine", 10), "rotation")
    turned = x @ orthonormal(DIM, 3).T
    only(of_codes(packed(turned - turned.mean(0)), x, None, "cosine", 10))
    codec = codecs.fit(x, 1.0, "rotated")
    plain = Codec(Linear(codec.view.centre, torch.eye(DIM)), codec.book, scale="none")
    only(of_file(Index.build(plain, x), x, None, None, 10), "rotation")


def test_signs_around_a_mean_that_is_not_zero_say_little():
    x = even() + 0.5
    assert states(of_codes(packed(x), x, None, "cosine", 10))["levels"] == "fault"


def test_integers_without_calibration_are_found():
    x = even()
    for codes in (
        x.to(torch.int8),
        (10 * x).to(torch.int8),
        (2000 * x).clamp(-128, 127).to(torch.int8),
        (600 * x).int().to(torch.int8),
    ):
        assert states(of_codes(codes.numpy(), x, None, "cosine", 10))["levels"] == "fault"


def test_scores_say_what_they_were_made_from():
    x, q = even(), normalize(torch.randn(40, DIM))
    x[:, :8] *= 3  # ranges that differ, so that raw integers and values rank differently
    codes = torch.from_numpy(integers(x)).float()
    low, high = x.amin(0), x.amax(0)
    values = (codes + 128) / 255 * (high - low) + low

    def state(scores: Tensor, metric: str = "ip") -> str:
        return states(of_codes(integers(x), x, q, metric, 10, scores))["scores"]

    assert state(q @ values.T) == state(q @ x.T) == "good"
    assert state(q @ codes.T) == "fault", "raw integers"
    assert state(q @ normalize(x).T) == state(2 * q @ x.T - x.square().sum(1)) == "fault", "another metric"
    assert state(q @ normalize(x).T, "cosine") == "good"
    assert state(torch.randn(40, N)) == "fault"
    y = even()
    bits, flipped = (torch.from_numpy(np.unpackbits(b, axis=1)).float() for b in (packed(y), packed(y) ^ np.uint8(128)))
    for scores, wanted in ((q @ (2 * bits - 1).T, "good"), (q @ bits.T, "good"), (q.sign() @ (2 * bits - 1).T, "good"),
                           (q @ (2 * flipped - 1).T, "fault")):  # fmt: skip
        assert states(of_codes(packed(y), y, q, "cosine", 10, scores))["scores"] == wanted


def test_codes_without_lengths_are_not_for_inner_products():
    x = even() * torch.rand(N, 1).add(0.1).square()
    only(of_codes(packed(x), x, None, "ip", 10), "metric")
    index = Index.build(codecs.fit(x, 4.0, metric="cosine"), x)
    only(of_file(index, x, None, "ip", 10), "metric")
    only(of_file(Index.build(codecs.fit(x, 4.0, "rotated", metric="ip"), x), x, None, None, 10))


def fde(sets: list[Tensor], mean: bool, planes: Tensor) -> Tensor:
    """Sums (of documents: means) of tokens per cell of random planes, cell beside cell."""
    found = torch.zeros(len(sets), 2 ** planes.shape[1], planes.shape[0])
    for i, tokens in enumerate(sets):
        cell = ((tokens @ planes > 0) * 2 ** torch.arange(planes.shape[1])).sum(1)
        found[i].index_add_(0, cell, tokens)
        if mean:
            found[i] /= torch.bincount(cell, minlength=found.shape[1]).clamp_min(1)[:, None]
    return found.flatten(1)


def test_cosines_of_encoded_sets_are_named():
    planes, base = torch.randn(16, 3), normalize(torch.randn(200, 16))

    def sets(n: int, least: int, most: int) -> list[Tensor]:
        sizes = torch.randint(least, most, (n,)).tolist()
        return [normalize(base[torch.randint(200, (size,))] + 0.3 * torch.randn(size, 16)) for size in sizes]

    x, q = fde(sets(900, 1, 40), True, planes), fde(sets(40, 3, 8), False, planes)
    assert states(of_codes(integers(x), x, q, "cosine", 10))["lengths"] == "fault"
    assert states(of_codes(integers(x), x, q, "ip", 10))["lengths"] == "good"
    long = even() * (0.2 + torch.rand(N, 1))
    assert states(of_codes(integers(long), long, None, "cosine", 10))["lengths"] == "look"


def test_codes_that_are_not_of_these_vectors_are_found():
    x, other = uneven(), torch.randperm(N)
    for codes in (packed(x[other]), integers(x[other])):
        assert states(of_codes(codes, x, None, "cosine", 10))["round trip"] == "fault"
    index = Index.build(codecs.fit(x, 2.0), x)
    assert states(of_file(index, x[other], None, None, 10))["round trip"] == "fault"


def test_codes_of_two_spaces_in_one_matrix_are_found():
    x = even()
    mixed = np.concatenate([packed(x[:750]), packed(x[750:] @ orthonormal(DIM, 5))])
    assert states(of_codes(mixed, x, None, "cosine", 10))["one space"] == "fault"
    a, b = (codecs.fit(x[:800], 2.0, "rotated"), codecs.fit(x[700:], 2.0, "itq"))
    index = Index.build(a, x[:750])
    index.add(b.encode(x[750:]))
    assert states(of_file(index, x, None, None, 10))["one space"] == "fault"


def test_vectors_that_no_query_tells_apart_are_found():
    x = even()
    only(of_codes(packed(x[:, :8]), x[:, :8], None, "cosine", 10), "ties")
    twice = torch.cat([x[:700], x[:700]])
    assert states(of_codes(packed(twice), twice, None, "cosine", 10))["ties"] == "good", "equal vectors have equal codes"


def test_a_batch_of_another_model_or_length_is_seen():
    x = even()
    codec = codecs.fit(x, 2.0, "rotated", metric="ip")
    for change in (lambda y: y + 0.1, lambda y: 2 * y):
        later = torch.cat([x[:800], change(x[800:])])
        assert states(of_file(Index.build(codec, later), later, None, None, 10))["drift"] == "fault"


def test_what_does_not_fit_gets_a_sentence():
    x = even()
    for what, words in (
        (lambda: of_codes(packed(x)[:9], x, None, "cosine", 10), "do not fit"),
        (lambda: of_codes(packed(x)[:, :5], x, None, "cosine", 10), "do not fit"),
        (lambda: of_codes(x.numpy(), x, None, "cosine", 10), "do not fit"),
        (lambda: of_codes(packed(x), x, None, "cosine", 10, torch.zeros(3, 4)), "need --queries"),
        (lambda: of_file(Index.build(codecs.fit(x, 1.0), x[:100]), x, None, None, 10), "first documents"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()


def test_the_command_says_what_is_wrong_and_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    x = even()
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "good.npy", packed(x))
    np.save(tmp_path / "bad.npy", packed(x) ^ np.uint8(128))
    Index.build(codecs.fit(x, 2.0), x).save(tmp_path / "a.codes")
    Index.build(codecs.fit(x, 1.0), x).save(tmp_path / "b.codes")

    def run(*words: object) -> int:
        return console.ends(lambda: app(["index", "check", *map(str, words)]))

    vectors = ("--vectors", tmp_path / "x.npy")
    assert run("--codes", tmp_path / "good.npy", *vectors) == 0
    capsys.readouterr()
    assert run("--codes", tmp_path / "bad.npy", *vectors, "--json") == 3
    told = capsys.readouterr()
    assert [row["test"] for row in json.loads(told.out) if row["state"] == "fault"] == ["convention"] and "add" in told.out
    assert run(tmp_path / "a.codes", *vectors) == 0 == run(tmp_path / "a.codes")
    assert run(tmp_path / "a.codes", tmp_path / "b.codes") == 3 and "spaces" in capsys.readouterr().err
    for words in ((), vectors, ("--codes", tmp_path / "good.npy"), ("--codes", tmp_path / "x.npy", *vectors)):
        assert run(*words) == 2
