"""Card nlsh-block: records that match by a rule which no overlap of words knows."""

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.embed.blocking import blocking, buckets, nearest, nearest_signs, signs
from bitwright.embed.nlsh_block import NlshBlock, encoded, labelled, loss, matches
from bitwright.embed.records import Hashed, Language, serialised
from bitwright.errors import BadRequest

CONCEPTS, WORDS, RECORDS, TRAINED = 200, 5, 2000, 1000


class Tables(NamedTuple):
    left: list[str]
    right: list[str]
    pairs: Tensor


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Every thing has a word in each table, seldom the same; price and shop tell nothing. Right record i is left order[i]."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    names = np.array(["".join(draw.choice(syllables, 3)) for _ in range(2 * CONCEPTS)]).reshape(2, CONCEPTS)
    things = np.stack([draw.choice(CONCEPTS, WORDS, replace=False) for _ in range(RECORDS)])

    def table(rows: np.ndarray, side: int) -> list[str]:
        own = np.where(draw.random(rows.shape) < 0.15, 1 - side, side)
        words = [" ".join(draw.permutation(names[o, r])) for o, r in zip(own, rows)]
        return [serialised({"title": w, "price": draw.integers(90), "shop": draw.integers(20)}) for w in words]

    order = draw.permutation(RECORDS)
    pairs = torch.tensor(np.stack([order, np.arange(RECORDS)], 1))
    return Tables(table(things, 0), table(things[order], 1), pairs)


@pytest.fixture(scope="module")
def trained(tables: Tables) -> tuple[Tensor, Tensor]:
    """Vectors of both tables; the first right records were learned from, with the rule as a list of their matches."""
    encoder, seen = Hashed(128, slots=1 << 12), tables.pairs[:TRAINED]
    NlshBlock(steps=200, again=80)(encoder, tables.left, tables.right[:TRAINED], labelled(seen), seen)
    return encoded(encoder, tables.left), encoded(encoder, tables.right)


def recall(rows: Tensor, pairs: Tensor) -> float:
    return float((rows[pairs[:, 1]] == pairs[:, :1]).any(1).double().mean())


def test_the_loss_pulls_only_between_its_radii():
    near = torch.tensor([0.1, 0.39, 0.41, 1.5], requires_grad=True)
    far = torch.tensor([0.1, 0.99, 1.01, 1.9], requires_grad=True)
    loss(near, far, 0.4, 2.5).backward()
    assert near.grad is not None and far.grad is not None
    assert near.grad.tolist() == [0, 0, 0.25, 0.25] and far.grad.tolist() == [-0.25, -0.25, 0, 0]
    assert loss(near[:1], far[3:], 0.4, 2.5).item() == pytest.approx(0.4 - 1.0)


def test_twenty_candidates_hold_what_minhash_does_not_find(tables: Tables, trained: tuple[Tensor, Tensor]):
    left, right = trained
    held = tables.pairs[TRAINED:]
    assert recall(nearest(left, right, 20).rows, held) >= 0.95
    assert recall(minhash(tables, 20), held) <= 0.7


def minhash(tables: Tables, k: int, hashes: int = 128) -> Tensor:
    """The k whose signatures agree in most places: as good as any choice of bands with as many candidates."""
    a = np.random.default_rng(1).integers(1, 2**31, (2, hashes), dtype=np.uint64)

    def signatures(texts: list[str]) -> Tensor:
        words = [np.array([crc32(word.encode()) for word in set(text.split())], np.uint64) for text in texts]
        return torch.from_numpy(np.stack([((w[:, None] * a[0] + a[1]) % 4294967311).min(0).astype(np.int64) for w in words]))

    left, right = signatures(tables.left), signatures(tables.right)
    return torch.stack([(left == own).sum(1).topk(k).indices for own in right])


def test_signs_lose_two_points_at_most(tables: Tables, trained: tuple[Tensor, Tensor]):
    left, right = trained
    held = tables.pairs[TRAINED:]
    for k in (1, 5, 20):
        floats, coded = nearest(left, right, k), nearest_signs(signs(left), signs(right), k)
        assert signs(left).shape[1] == 16 and recall(coded.rows, held) >= recall(floats.rows, held) - 0.02


def test_the_least_k_is_reported_with_its_ties(tables: Tables, trained: tuple[Tensor, Tensor]):
    left, right = trained
    tuned, held = tables.pairs[TRAINED : TRAINED + 500], tables.pairs[TRAINED + 500 :]
    found = nearest_signs(signs(left), signs(right), 60)
    told = blocking(found, tuned, 0.95)
    assert told.recall >= 0.95 and (told.k == 1 or recall(found.rows[:, : told.k - 1], tuned) < 0.95)
    assert recall(found.rows[:, : told.k], held) >= 0.92
    every = found.distances <= found.distances[:, told.k - 1 : told.k]
    assert told.ties == pytest.approx(float(every.sum(1).double().mean()) - told.k)
    with pytest.raises(BadRequest, match="ask for more"):
        blocking(found, tuned, 1.1)


def test_tables_of_signs_meet_matches_far_more_often_than_strangers(tables: Tables, trained: tuple[Tensor, Tensor]):
    left, right = trained
    found = buckets(signs(left), signs(right), 12, 16)
    held = tables.pairs[TRAINED:]
    met = labelled(found)(*held.T)
    more = labelled(buckets(signs(left), signs(right), 24, 16))(*held.T)
    assert met.double().mean() > 20 * len(found) / RECORDS**2 and (more | ~met).all() and more.sum() > met.sum()


def test_a_rule_is_a_function_or_a_list_of_pairs():
    rule = lambda left, right: (left + right) % 5 == 0  # noqa: E731
    pairs = matches(rule, 12, 9)
    i, j = torch.meshgrid(torch.arange(15), torch.arange(15), indexing="ij")
    told = labelled(pairs)(i.flatten(), j.flatten()).view(15, 15)
    assert torch.equal(told[:12, :9], rule(i, j)[:12, :9]) and not told[12:].any() and not told[:, 9:].any()


def test_what_is_mined_is_put_to_the_rule(tables: Tables):
    encoder, rule = Hashed(16), lambda left, right: left % 10 == right % 10
    strangers, fresh = NlshBlock(mined=30).mine(encoder, tables.left[:40], tables.right[:9], rule, torch.arange(3, 9))
    assert rule(*fresh.T).all() and (strangers < 0).sum() == len(fresh) > 0
    kept = strangers >= 0
    assert not rule(strangers[kept], torch.arange(3, 9)[:, None].expand(strangers.shape)[kept]).any()


def test_a_language_model_is_tuned_like_any_encoder(tmp_path: Path):
    """A tiny RoBERTa, untrained, learns three matches."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    left, right = ["red apple", "green pear", "blue plum"], ["rot", "birne birne", "blau"]
    words = ["<s>", "<pad>", "<unk>", *{word for text in left + right for word in text.split()}]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(RobertaConfig(vocab_size=len(words), max_position_embeddings=20, **sizes)).save_pretrained(tmp_path)
    encoder, pairs = Language(tmp_path, 8).eval(), torch.arange(3)[:, None].repeat(1, 2)
    alone = encoder(right)[0]
    torch.testing.assert_close(encoder(right[:1])[0], alone, atol=1e-5, rtol=0)  # padding changes nothing
    NlshBlock(steps=60, batch=6, rate=1e-2, mined=3, again=30)(encoder, left, right, labelled(pairs), pairs)
    assert torch.equal(nearest(encoded(encoder, left), encoded(encoder, right), 1).rows[:, 0], torch.arange(3))
    with pytest.raises(BadRequest, match="no model in"):
        Language(tmp_path / "none")


def test_nothing_to_learn_from_is_said():
    for what, words in (
        (lambda: NlshBlock()(Hashed(8), ["a"], ["b"], labelled(torch.empty(0, 2).long()), torch.empty(0, 2).long()), "label some"),
        (lambda: buckets(torch.zeros(3, 2).byte(), torch.zeros(3, 2).byte(), 1, 17), "1 to 16"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()
