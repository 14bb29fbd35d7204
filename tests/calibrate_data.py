"""Token windows: the same arguments give the same ids, the two splits share nothing, bad requests say the remedy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitwright.calibrate.data import Windows, overlap, windows
from bitwright.errors import BadRequest


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([Path(json.__file__).read_text()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


@pytest.fixture(scope="module")
def halves(tokenizer: PreTrainedTokenizerFast) -> dict[str, Windows]:
    return {split: windows(tokenizer, samples=40, length=64, split=split) for split in ("calibration", "evaluation")}


def grams(ids: torch.Tensor, n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for row in ids.tolist() for i in range(len(row) - n + 1)]


def test_same_arguments_same_ids_other_seed_other_ids(tokenizer, halves):
    again = windows(tokenizer, samples=40, length=64)
    other = windows(tokenizer, samples=40, length=64, seed=1)
    assert again.sha256 == halves["calibration"].sha256 != other.sha256
    assert torch.equal(again.ids, halves["calibration"].ids) and again.titles == halves["calibration"].titles


def test_windows_are_disjoint_balanced_and_named(halves):
    data = halves["calibration"]
    assert data.ids.shape == (40, 64) and len(data.titles) == len(data.domain) == len(data.bytes) == 40
    assert len(torch.unique(data.ids, dim=0)) == 40
    assert data.domains == ("code", "prose") and data.domain.bincount().tolist() == [20, 20]
    assert data.name == "stdlib/calibration"
    assert not torch.equal(data.domain, data.domain.sort().values)  # mixed, so the first rows are a fair subset
    assert torch.equal(data.take(7).ids, data.ids[:7]) and data.take(7).titles == data.titles[:7]


def test_splits_share_no_document_and_next_to_no_13_gram(halves):
    assert not set(halves["calibration"].titles) & set(halves["evaluation"].titles)
    assert overlap(halves["calibration"].ids, halves["evaluation"].ids) < 0.02


def test_overlap_counts_the_shared_13_grams(halves):
    a, b = halves["calibration"].ids, halves["evaluation"].ids
    mixed = torch.cat([a[:10], b[:30]])
    seen = set(grams(a, 13))
    by_hand = np.mean([gram in seen for gram in grams(mixed, 13)])
    assert overlap(a, mixed) == pytest.approx(by_hand, abs=1e-12) and by_hand >= 0.25
    assert overlap(a, a) == 1.0
    with pytest.raises(BadRequest, match="longer windows"):
        overlap(a[:, :12], b)


def test_bytes_are_those_of_the_scored_text(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("Grüße aus Köln, 東京 and Ωmega. " * 200, encoding="utf-8")
    data = windows(tokenizer, tmp_path / "a.txt", samples=4, length=50, split=None)
    for row, size in zip(data.ids, data.bytes):
        first, rest = tokenizer.decode(row[:1]), tokenizer.decode(row)
        if "\ufffd" not in first + rest:  # windows cut inside a character have no text of their own
            assert size == len(rest.encode()) - len(first.encode())
    whole = windows(tokenizer, tmp_path / "a.txt", samples=1, length=2000, split=None)
    assert whole.bytes.sum() == pytest.approx(len(tokenizer.decode(whole.ids[0]).encode()), abs=6)


def test_a_file_is_halved_in_the_middle(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("x = 1\n" * 500 + "why not?\n" * 500)
    first = windows(tokenizer, tmp_path / "a.txt", samples=5, length=30)
    second = windows(tokenizer, tmp_path / "a.txt", samples=5, length=30, split="evaluation")
    assert first.domains == ("a.txt",) and first.titles == ("a.txt",) * 5
    assert "x = 1" in tokenizer.decode(first.ids[0])
    assert "x" not in tokenizer.decode(second.ids.flatten())


def test_a_directory_has_a_domain_for_each_file_and_uneven_files_share_unevenly(tokenizer, tmp_path):
    (tmp_path / "long.md").write_text("a long text, word by word " * 300)
    (tmp_path / "short.py").write_text("pass\n" * 40)
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    data = windows(tokenizer, tmp_path, samples=12, length=32, split=None)
    assert data.domains == ("long.md", "short.py")
    counts = data.domain.bincount().tolist()
    assert sum(counts) == 12 and counts[0] > counts[1] > 0


def test_jsonl_records_fall_into_one_half_each(tokenizer, tmp_path):
    texts = [f"record number {i} speaks of {i * i} things. " * 3 for i in range(60)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    one = windows(tokenizer, tmp_path / "r.jsonl", samples=10, length=40)
    two = windows(tokenizer, tmp_path / "r.jsonl", samples=10, length=40, split="evaluation")
    assert not set(one.titles) & set(two.titles)


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.txt", "give 'stdlib'"), ("image.png", "give 'stdlib'"), ("bad.txt", "convert"), ("bad.jsonl", '"text"')],
)
def test_a_bad_source_is_refused_with_the_remedy(tokenizer, tmp_path, source, message):
    for name in ("image.png", "bad.txt"):
        (tmp_path / name).write_bytes(b"\xff\xfe\xff")
    (tmp_path / "bad.jsonl").write_text('{"words": 1}\n')
    with pytest.raises(BadRequest, match=message):
        windows(tokenizer, tmp_path / source, samples=1, length=8, split=None)


def test_too_little_text_says_how_much_there_is(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("word " * 100)
    with pytest.raises(BadRequest, match=r"holds \d+ windows of 32 tokens and 500 were asked for: ask for fewer"):
        windows(tokenizer, tmp_path / "a.txt", samples=500, length=32)
    with pytest.raises(BadRequest, match="at least 1 window"):
        windows(tokenizer, samples=0)


def test_hub_data_without_its_package_says_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(BadRequest, match=r"install bitwright\[eval\]"):
        windows(tokenizer, "hub:some/name::test", samples=1, length=8)
