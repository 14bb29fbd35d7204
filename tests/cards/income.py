"""Card income: encoders read by their signs, points moved under fixed codes, and training data made from the passages alone."""

import re
from pathlib import Path

import pytest
import torch
import wikitext
from torch import Tensor, nn
from torch.nn.functional import normalize

from bitwright.embed import bpr, codecs, income, jpq
from bitwright.embed.bpr import Bpr, Pairs, signs, soft
from bitwright.embed.index import Index
from bitwright.embed.jpq import Jpq
from bitwright.embed.learning import descend
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import ndcg, overlap
from bitwright.kernels.scanning import Blocked
from bitwright.training.loop import Training

# --- losses --------------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_a_loop_over_pairs() -> None:
    q, p = torch.randn(4, 8), torch.randn(8, 8)
    rows = [(torch.log(sum(torch.exp(q[i] @ p[j]) for j in range(8))) - q[i] @ p[i]) for i in range(4)]
    torch.testing.assert_close(bpr.dense(q, p), torch.stack(rows).mean())
    behind = [torch.relu(2 - q[i] @ p[i] + q[i] @ p[j]) for i in range(4) for j in range(8) if j != i]
    torch.testing.assert_close(bpr.binary(q, p), torch.stack(behind).mean())
    margins = torch.randn(4)
    off = [(q[i] @ p[i] - q[i] @ p[4 + i] - margins[i]) ** 2 for i in range(4)]
    torch.testing.assert_close(bpr.taught(q, p, margins), torch.stack(off).mean())


def test_a_teacher_moves_every_row_of_both_blocks() -> None:
    q, p = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)
    bpr.taught(q, p, torch.randn(4)).backward()
    assert p.grad is not None and (p.grad.abs().sum(1) > 0).all()


def test_soft_codes_become_signs() -> None:
    e = torch.linspace(-1, 1, 2001)[:, None]
    far = e.abs() > 0.05
    off = [float((soft(e, step) - signs(e))[far].abs().max()) for step in (0, 1000, 140_000)]
    assert off == sorted(off, reverse=True) and off[-1] < 1e-3
    assert signs(torch.tensor([[-0.0, 0.0, -1e-9]])).tolist() == [[1.0, 1.0, -1.0]]


def test_ranked_pairs_are_those_of_a_loop() -> None:
    scores, positive = torch.randn(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    positive[0, 3] = positive[1, 4] = True
    scores[0, 4] = -torch.inf  # the positive of the first was found, and is not there a second time
    total, count = 0.0, 0
    for b, at in ((0, 3), (1, 4)):
        for j in range(5):
            if j != at and scores[b, j].isfinite():
                worth = [1 / (r + 1) if r < 3 else 0.0 for r in (at, j)]
                total += abs(worth[0] - worth[1]) * float(torch.log1p(torch.exp(scores[b, j] - scores[b, at])))
                count += 1
    rows = torch.zeros(2, dtype=torch.int64)
    assert float(jpq.ranked(3)(scores, positive, rows, rows[:, None].expand(2, 5))) == pytest.approx(total / count, rel=1e-5)
    known = scores.nan_to_num(neginf=0.0) + torch.tensor([[1.0], [2.0]])  # as far apart as the teacher has them
    assert float(jpq.taught(lambda *_: known)(scores, positive, rows, rows[:, None].expand(2, 5))) < 1e-10


# --- the two searches, on vectors ---------------------------------------------------------------------------------------------


def test_candidates_by_bits_and_their_order_by_floats() -> None:
    p, q = torch.randn(400, 32), torch.randn(6, 32)
    plain = Bpr(nn.Identity(), nn.Identity())
    index = plain.index(p, torch.arange(400) + 1000)
    assert index.bytes == Blocked.of(torch.zeros(400, 8, dtype=torch.uint8)).data.numel() + 8 * 400  # a bit each, and ids
    hits = plain.search(index, q, 10, candidates=50)
    for row, ids, scores in zip(q, hits.ids, hits.scores):
        apart = (signs(p) != signs(row[None])).sum(1)
        kept = apart.argsort(stable=True)[:50]
        best = (signs(p[kept]) @ row).sort(descending=True)
        torch.testing.assert_close(scores, best.values[:10])
        assert torch.equal(ids - 1000, kept[best.indices[:10]])
    with pytest.raises(BadRequest, match="smaller k"):
        plain.search(index, q, 60, candidates=50)
    with pytest.raises(BadRequest, match="nibbles of four"):
        plain.index(torch.randn(5, 30))


def asked(n: int = 600, dim: int = 32) -> tuple[Tensor, Tensor]:
    """Documents, and queries that see them through a map of their own."""
    x = normalize(torch.randn(24, dim)[torch.randint(24, (n,))] + 0.7 * torch.randn(n, dim))
    return x, normalize(x @ (torch.eye(dim) + 0.15 * torch.randn(dim, dim)) + 0.1 * torch.randn(n, dim))


def test_codes_stay_and_more_is_found_under_moved_points(tmp_path: Path) -> None:
    x, q = asked()
    codec = codecs.fit(x, 0.5, "product")
    codes = codec.encode(x)
    before, own = codes.nibbles.clone(), torch.arange(len(x))
    found = Jpq.train(codec, codes, q[:400], own[:400], results=50, rates=(3e-3, 3e-2), how=Training(steps=120, warm=0.05))
    index, start = Index.build(found.codec, x), Index.build(codec, x)
    share = lambda ids: float((ids == own[400:, None]).any(1).float().mean())  # noqa: E731
    assert share(index.search(found.queries(q[400:]), 10).ids) > share(start.search(q[400:], 10).ids)
    assert torch.equal(codes.nibbles, before) and torch.equal(index.codes.data, start.codes.data)
    assert found.codec.space_id != codec.space_id and not torch.equal(found.codec.book.points, codec.book.points)
    assert torch.equal(index.factor, start.factor)
    index.save(tmp_path / "a.codes")
    again = Index.open(tmp_path / "a.codes")
    again.add(x[:3])
    assert torch.equal(again.codes.nibbles(torch.arange(600, 603)), index.codes.nibbles(torch.arange(3)))


def test_a_run_that_starts_from_nothing_changes_nothing() -> None:
    x, q = asked(200)
    codec = codecs.fit(x, 1.0, "additive")
    found = Jpq.train(codec, codec.encode(x), q, torch.arange(200), how=Training(steps=0))
    assert torch.equal(found.queries(q), q) and found.codec is codec


def test_scores_in_training_are_those_of_the_search() -> None:
    x, q = asked(100)
    codec = codecs.fit(x, 1.0, "additive")
    hits = Index.build(codec, x).search(q[:5], 20)
    torch.testing.assert_close(jpq.read(codec, codec.queries(q[:5]), codec.encode(x), hits.ids), hits.scores, rtol=1e-4, atol=1e-5)


# --- the pipeline --------------------------------------------------------------------------------------------------------------


def test_as_many_queries_as_the_corpus_needs() -> None:
    passages = [f"First of {i}. Second of {i}. Third of {i}. Fourth of {i}." for i in range(10)]
    queries, pairs = income.synthesize(passages, enough=30)
    assert len(queries) == 30 and pairs.positives.bincount().tolist() == [3] * 10 and queries[4] == "Second of 1."
    queries, pairs = income.synthesize(passages, enough=12)  # larger than 12 / 3: a sample of four, three each
    assert len(queries) == 12 and len(pairs.positives.unique()) == 4
    with pytest.raises(BadRequest, match="no query"):
        income.synthesize(passages, lambda text, count: [])


def test_negatives_are_what_others_find_and_labels_what_a_teacher_says() -> None:
    passages, queries = [str(i) for i in range(8)], ["2", "5"]
    pairs = Pairs(torch.arange(2), torch.tensor([2, 5]), torch.empty(2, 0, dtype=torch.int64))
    up, down = (lambda asked, k, step=step: torch.stack([(int(a) + step * torch.arange(k)) % 8 for a in asked]) for step in (1, -1))
    away = lambda asked, k: torch.stack([(int(a) + 3 + torch.arange(k)) % 8 for a in asked])  # noqa: E731  never finds the passage
    mined = income.mine(queries, pairs, [up, down, away], k=2)
    assert mined.negatives.tolist() == [[3, 4, 1, 0, 5, 6], [6, 7, 4, 3, 0, 1]]
    judge = lambda a, b: -torch.tensor([abs(float(x) - float(y)) for x, y in zip(a, b)])  # noqa: E731
    told = income.label(queries, passages, mined, judge)
    assert told.margins is not None and told.margins[0].tolist() == [1, 2, 1, 2, 3, 4]
    scaled = income.label(queries, passages, mined, judge, spread=0.5).margins
    assert scaled is not None and float(scaled.std()) == pytest.approx(0.5)


def test_a_teacher_makes_signs_that_rank_more_as_it_does() -> None:
    """GPL for both kinds of codes: nothing but passages, queries and a function of two texts."""
    p, q = asked()
    passages, queries = ([str(i) for i in range(600)] for _ in range(2))
    sure = lambda a, b: 10 * (q[[int(i) for i in a]] * p[[int(i) for i in b]]).sum(1)  # noqa: E731
    pairs = Pairs(torch.arange(600), torch.arange(600), torch.randint(600, (600, 4)))
    told = income.label(queries, passages, pairs, sure, spread=2.0)
    encoder = nn.Linear(32, 64, bias=False)
    start, taught = Bpr(encoder, encoder), Bpr.train(encoder, encoder, q, p, told, rate=3e-3, how=Training(steps=200))
    wanted = (q @ p.T).topk(10).indices
    shares = [float(overlap(one.search(one.index(p), q, candidates=100).ids, wanted).mean()) for one in (start, taught)]
    assert shares[1] > shares[0]
    codec = codecs.fit(p, 0.5, "product")
    teacher = jpq.taught(lambda rows, documents: 20 * (q[rows][:, None] * p[documents]).sum(2))
    found = Jpq.train(
        codec, codec.encode(p), q, torch.arange(600), teacher, results=25, rates=(3e-3, 3e-2), how=Training(steps=150)
    )
    ids = [Index.build(codec, p).search(q).ids, Index.build(found.codec, p).search(found.queries(q)).ids]
    assert overlap(ids[1], wanted).mean() > overlap(ids[0], wanted).mean()


def test_gradients_are_clipped_and_the_step_is_the_callers() -> None:
    p, steps = torch.zeros(1, requires_grad=True), []

    def loss(rows: Tensor, step: int) -> Tensor:
        steps.append(step)
        return 1e6 * p.sum()

    descend([{"params": [p], "lr": 1.0}], loss, lambda: 0.0, 4, 2, Training(steps=5, optimizer="sgd", keep="last"), clip=1e-3)
    assert steps == [0, 1, 2, 3, 4] and -0.006 < float(p.detach()) < 0


# --- paragraphs of text: the last sentence asks for the rest of its paragraph --------------------------------------------------


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) ", text)


def domain(split: str) -> tuple[list[str], list[str]]:
    """Passages, and a query for each."""
    long = [[s for s in sentences(text) if len(s.split()) >= 6] for article in wikitext.articles(split) for text in article]
    return [" ".join(s[:-1]) for s in long if len(s) >= 4], [s[-1] for s in long if len(s) >= 4]


def apart(queries: list[str], passages: list[str], pairs: Pairs) -> tuple[list[str], Pairs]:
    """Each pair with a passage of its own, which does not hold the query: else nothing but copying is learned."""
    rest = [passages[row].replace(query, " ") for query, row in zip(queries, pairs.positives.tolist())]
    return rest, Pairs(pairs.queries, torch.arange(len(rest)), pairs.negatives)


def found(ids: Tensor, k: int = 10) -> float:
    """Recall of passage i for query i."""
    return float((ids[:, :k] == torch.arange(len(ids))[:, None]).any(1).float().mean())


def gain(ids: Tensor) -> float:
    return float(ndcg(ids, [{i: 1.0} for i in range(len(ids))]).mean())


@pytest.fixture(scope="module")
def shifted() -> dict[str, Tensor]:
    """A bi-encoder of counts of words, trained on one domain, as floats and to be read by signs; and adapted to the other."""
    (source, asked), (target, wanted) = domain("valid"), domain("test")
    width, rare = 4096, torch.from_numpy(wikitext.rarity(wikitext.counts(source, 4096)))
    features = lambda texts: normalize(torch.from_numpy(wikitext.counts(texts, width).toarray()) * rare)  # noqa: E731
    s, sq, t, tq = map(features, (source, asked, target, wanted))
    encoder, own = nn.Linear(width, 256, bias=False), torch.arange(len(s))
    nn.init.normal_(encoder.weight, 0, 0.1, generator=torch.Generator().manual_seed(0))

    def loss(rows: Tensor, _: int = 0) -> Tensor:
        return bpr.dense(20 * normalize(encoder(sq[rows])), normalize(encoder(s[rows])))

    learned, judging = own[:-100], own[-100:]
    group = {"params": [*encoder.parameters()], "lr": 1e-3}
    descend([group], lambda rows, _: loss(learned[rows]), lambda: float(loss(judging)), len(learned), 64, Training(steps=300))
    plain = Pairs(own, own, torch.empty(len(own), 0, dtype=torch.int64))
    coded = Bpr.train(encoder, encoder, sq, s, plain, how=Training(steps=300, warm=0.05))
    queries, pairs = income.synthesize(target, enough=6 * len(target))
    texts, pairs = apart(queries, target, pairs)
    how = Training(steps=400, warm=0.05)
    adapted = Bpr.train(coded.queries, coded.passages, features(queries), features(texts), pairs, batch=128, how=how)
    with torch.no_grad():
        floats = (normalize(encoder(tq)) @ normalize(encoder(t)).T).topk(10).indices
        index = coded.index(t)
        bits = index.search(signs(coded.queries(tq)), 10).ids
    return {
        "float": floats,
        "bits": bits,
        "coded": coded.search(index, tq).ids,
        "adapted": adapted.search(adapted.index(t), tq).ids,
    }


@pytest.mark.acceptance
def test_codes_lose_more_in_a_new_domain_and_queries_made_from_it_win_half_back(shifted: dict[str, Tensor]) -> None:
    floats, coded, adapted = (found(shifted[kind]) for kind in ("float", "coded", "adapted"))
    assert floats - coded >= 0.03
    assert adapted - coded >= 0.5 * (floats - coded)


@pytest.mark.acceptance
def test_floats_rank_candidates_better_than_bits(shifted: dict[str, Tensor]) -> None:
    assert gain(shifted["coded"]) >= gain(shifted["bits"]) + 0.03


@pytest.mark.acceptance
def test_fixed_codes_answer_real_queries_better_after_training_on_made_ones() -> None:
    (first, one), (second, other) = (domain(split) for split in ("valid", "test"))
    passages, asked = first + second, one + other
    made, pairs = income.synthesize(passages, enough=5 * len(passages))
    x = wikitext.lsa(passages + asked + made, 128)
    p, q, own = x[: len(passages)], x[len(passages) : 2 * len(passages)], x[2 * len(passages) :]
    kept = (own.norm(dim=1) > 0) & torch.tensor([len(text.split()) >= 6 for text in made])
    codec = codecs.fit(p, 0.5, "product")
    codes = codec.encode(p)
    before, start = codes.nibbles.clone(), Index.build(codec, p)
    how = {"results": 100, "rates": (1e-3, 5e-3), "batch": 64, "how": Training(steps=250, warm=0.05)}
    trained = Jpq.train(codec, codes, own[kept], pairs.positives[kept], **how)
    index = Index.build(trained.codec, p)
    assert torch.equal(codes.nibbles, before) and torch.equal(index.codes.data, start.codes.data)
    assert found(index.search(trained.queries(q)).ids) > found(start.search(q).ids) + 0.01
