"""Card bebr: recurrent binarization from a warm start, codes that answer codes exactly, a new encoder that asks old codes.

Every bar is measured on the card's set (tests/lsa.py) and marked acceptance; the laws beside it make their own vectors.
"""

import time
from dataclasses import replace
from pathlib import Path

import lsa
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed import codecs
from bitwright.embed.bebr import Recurrent, codec, fit, frame, planes, sgn
from bitwright.embed.codec import Codec
from bitwright.embed.compatible import Compatible, Met, aligned
from bitwright.embed.index import Index
from bitwright.embed.judging import exact
from bitwright.embed.projections import Itq
from bitwright.embed.teaching import Kept, Likeness, Pairs, contrast, teach
from bitwright.embed.views import View
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import overlap
from bitwright.kernels.scanning import hamming
from bitwright.training.loop import Training

DIM = 32


def clustered(n: int, dim: int = DIM) -> Tensor:
    return normalize(torch.randn(24, dim)[torch.randint(24, (n,))] + 0.5 * torch.randn(n, dim))


def kept(found: Codec, x: Tensor, q: Tensor) -> tuple[float, float]:
    """Overlap with the floats' top 10: codes asking, vectors asking."""
    index, best = Index.build(found, x), exact(x, q, 10, "cosine")
    symmetric, asymmetric = (overlap(index.search(a, 10, oversample=4.0).ids, best) for a in (found.encode(q), q))
    return float(symmetric.mean()), float(asymmetric.mean())


# --- the code ----------------------------------------------------------------------------------------------------------------


def two_levels(x: Tensor, matrix: Tensor) -> Tensor:
    y = x.shape[1] ** 0.5 * x @ matrix.T
    return torch.where(y < 0, -1.0, 1.0) * torch.where(y.abs() < 1, 0.5, 1.5)


@pytest.mark.parametrize("dim", [32, 128])
def test_untrained_it_is_the_code_of_a_rotation_bit_for_bit(dim: int):
    x, matrix = clustered(2000, dim), frame(dim, dim)
    for planes_, wanted in ((1, two_levels(x, matrix).sign()), (2, two_levels(x, matrix))):
        found = codec(Recurrent.start(matrix, planes_))
        assert torch.equal(found.view.seen(x), wanted)
        assert torch.equal(found.book.decode(found.encode(x).nibbles), wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_book_holds_every_sum_of_planes_and_no_bit_more(count: int):
    book = planes(8, count)
    signs = torch.randint(2, (200, 8, count)) * 2.0 - 1
    b = (signs * 2.0 ** -torch.arange(count)).sum(2)
    assert torch.equal(book.decode(book.encode(b)), b) and 4 * len(book.starts) == 8 * count


def test_two_planes_lie_in_a_nibble_as_engines_have_them():
    """[b0 of dim 2j, b1 of dim 2j, b0 of dim 2j + 1, b1 of dim 2j + 1], most significant bit first; products are ninths apart."""
    points = planes(8, 2).points
    assert points[3, 0b1001].tolist() == [0.5, -0.5] and points[0, 0b1100].tolist() == [1.5, -1.5]
    table = 2 * points[0] @ points[0].T + 9
    assert torch.equal(table, table.round()) and float(table.min()) == 0 and float(table.max()) == 18


def test_the_gradient_passes_where_an_input_is_small_and_zero_is_one():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    y = sgn(x)
    y.sum().backward()
    assert y.tolist() == [-1, -1, 1, 1, 1] and x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


def test_codes_that_ask_codes_are_ranked_exactly():
    """10,000 documents of 128 dimensions and two planes: the scan of whole numbers and the floats of decoded codes."""
    found = codec(Recurrent.start(frame(128, 128), 2, hidden=8))
    codes, asked = found.encode(torch.randn(10_000, 128)), found.encode(torch.randn(20, 128))
    index = Index.empty(found)
    index.add(codes)
    hits = index.search(asked, 100, oversample=1.0)
    scores = found.near(asked).double() @ found.near(codes).double().T
    torch.testing.assert_close(hits.scores.double(), scores.topk(100).values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores.gather(1, hits.ids), scores.topk(100).values, rtol=1e-6, atol=1e-6)


def test_a_file_holds_the_networks(tmp_path: Path):
    x = clustered(300)
    index = Index.build(codec(Recurrent.start(frame(DIM, DIM), 3, hidden=8)), x)
    index.save(tmp_path / "a.codes")
    again = Index.open(tmp_path / "a.codes")
    assert again.codec.space_id == index.codec.space_id and isinstance(again.codec.view, Recurrent)
    assert torch.equal(again.search(x[:5], 7).ids, index.search(x[:5], 7).ids)


# --- learning ----------------------------------------------------------------------------------------------------------------


def test_a_thing_is_never_its_own_negative():
    a = clustered(6)
    ids = torch.tensor([0, 0, 0, 1, 1, 1])
    alone = contrast(a, a, ids, 0.05, 5)
    assert alone < contrast(a, a, torch.arange(6), 0.05, 5)
    assert float(contrast(a, a, torch.zeros(6, dtype=torch.long), 0.05, 5)) == pytest.approx(0)


def test_pairs_draw_together_what_belongs_together():
    """Two noisy views of 200 things, noise in half of the dimensions: codes learn which half."""
    things = torch.randn(400, DIM // 2)
    noisy = lambda: normalize(torch.cat([things, 1.5 * torch.randn(400, DIM // 2)], 1))  # noqa: E731
    a, p = noisy(), noisy()

    def found(view: View) -> float:
        return float(((view.seen(a[200:]) @ view.seen(p[200:]).T).argmax(1) == torch.arange(200)).double().mean())

    view = Recurrent.start(frame(DIM, DIM), 2, hidden=64)
    taught = teach(view, Pairs(a[:200], p[:200], torch.arange(200)), found, Training(steps=150, checks=3), step=3e-3, batch=200)
    assert taught.after > taught.before + 0.1 and taught.after == found(taught.view)


def test_what_does_not_help_is_not_kept():
    x = clustered(300)
    view = Recurrent.start(frame(DIM, DIM), 1, hidden=16)
    taught = teach(view, Likeness(x), Kept(x[:50], x), Training(steps=4, checks=4), step=10.0, batch=64)
    assert taught.view is view and taught.after == taught.before
    again = [teach(view, Likeness(x), Kept(x[:50], x), Training(steps=10), batch=64) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(again[0].view.tensors().values(), again[1].view.tensors().values()))


def test_old_codes_are_asked_where_the_index_lists_the_new_space():
    x = clustered(600)
    old = codec(Recurrent.start(frame(DIM // 2, DIM // 2), 2, hidden=8), "old")
    halves = normalize(x[:, : DIM // 2] + 0.05 * torch.randn(600, DIM // 2))
    gallery = Index.build(old, halves)
    new = codec(Recurrent.start(aligned(x, old.view.seen(halves), DIM), 2, hidden=8), "new")
    with pytest.raises(BadRequest, match=f"of space {new.space_id}"):
        gallery.search(x[:5], 5, by=new)
    gallery = replace(gallery, about={"compatible": [new.space_id]})
    met = overlap(gallery.search(x[:50], 10, by=new).ids, gallery.search(halves[:50], 10).ids)
    stranger = codec(Recurrent.start(frame(DIM, DIM, seed=7), 2, hidden=8))
    missed = overlap(replace(gallery, about={"compatible": [stranger.space_id]}).search(x[:50], 10, by=stranger).ids,
                     gallery.search(halves[:50], 10).ids)  # fmt: skip
    assert met.mean() > 0.4 and missed.mean() < 0.1
    with pytest.raises(BadRequest, match="do not fit"):
        aligned(x, old.view.seen(halves), 8)


def test_a_codec_is_fitted_without_pairs_and_never_worse_where_it_was_judged():
    x = clustered(600)
    found = fit(x, 1, how=Training(steps=10, checks=2))
    judge = Kept(x[::10], x[torch.arange(600) % 10 > 0])
    assert judge(found.view) >= judge(Recurrent.start(frame(DIM, DIM), 1))
    with pytest.raises(BadRequest, match="multiple of 4"):
        fit(x, 2, dims=30)


# --- acceptance: the card's set ----------------------------------------------------------------------------------------------


@pytest.mark.acceptance
@pytest.mark.parametrize("count", [1, 2, 3])
def test_learning_never_costs_and_one_bit_is_as_good_as_itq(count: int):
    train, q, x = lsa.wikitext()
    start, taught = codec(Recurrent.start(frame(256, 256), count)), fit(train, count)
    (before, float_before), (after, float_after) = kept(start, x, q), kept(taught, x, q)
    print(f"{256 * count} bits: codes asking {before:.3f} -> {after:.3f}, vectors asking {float_before:.3f} -> {float_after:.3f}")
    assert after >= before - 0.005
    if count == 1:
        assert after >= kept(codecs.fit(train, 1.0, "itq"), x, q)[0] - 0.02
    if count == 2:
        assert after >= 0.75


@pytest.mark.acceptance
def test_every_plane_adds_and_two_planes_beat_twice_the_dimensions():
    _, q, x = lsa.wikitext()
    found = [kept(codec(Recurrent.start(frame(256, 256), count, 0)), x, q)[0] for count in (1, 2, 3, 4)]
    wide = kept(codec(Recurrent.start(frame(256, 512), 1, 0)), x, q)[0]
    print(f"256 dimensions, 1 to 4 planes: {found}; 512 of one plane: {wide:.3f}")
    assert found == sorted(found) and found[1] > found[0] + 0.1 and found[1] > wide


@pytest.mark.acceptance
def test_codes_of_two_bits_find_no_less_than_twice_as_many_signs_and_hamming_distances():
    """512 bits against 1,024: then the former need only be scanned as fast, and they are half the bytes."""
    train, q, x = lsa.wikitext()
    wide = frame(256, 1024)
    bits = [torch.from_numpy(np.packbits(((y - train.mean(0)) @ wide.T > 0).numpy(), axis=1)) for y in (x, q)]
    signs = float(overlap(hamming(*bits, 10).rows, exact(x, q, 10, "cosine")).mean())
    ours = kept(codecs.fit(train, 2.0, "rotated"), x, q)[0]
    print(f"512 bits, codes asking {ours:.3f}; 1,024 bits, Hamming distances {signs:.3f}")
    assert ours >= signs


@pytest.mark.acceptance
def test_new_queries_in_an_old_gallery():
    """Encoder A: 128 dimensions, B: 256. A query finds where one of its top 10 is of its article."""
    (a_train, a_q, a_x), (train, q, x), article = lsa.wikitext(128), lsa.wikitext(256), lsa.articles()
    old = codec(Recurrent.start(frame(128, 128), 2), "A")
    past, held = old.view.seen(a_train), slice(0, 1000)
    rest = slice(1000, None)

    def worth(view: View) -> float:
        return Kept(train[held], train[rest])(view) + Met(train[held], train[rest], past[rest])(view)

    lesson = Compatible(Likeness(train[rest]), train[rest], past[rest], torch.arange(len(train))[rest])
    view = teach(Recurrent.start(aligned(train, past, 256), 2), lesson, worth, Training(steps=200, checks=4), step=5e-4).view
    new, other = codec(view, "B"), codec(Recurrent.start(frame(256, 256), 2), "B alone")
    before, after = Index.build(old, a_x), Index.build(new, x)
    before.about = {"compatible": [new.space_id, other.space_id]}

    def recall(index: Index, asked: Tensor, by: Codec) -> float:
        ids = index.search(asked, 10, oversample=4.0, by=by).ids
        return float((article.documents[ids] == article.queries[:, None]).any(1).double().mean())

    was, met, now = recall(before, a_q, old), recall(before, q, new), recall(after, q, new)
    alone = recall(before, q, other)
    drawn = article.documents[torch.randint(len(x), (len(q), 10))]
    chance = float((drawn == article.queries[:, None]).any(1).double().mean())
    print(f"old/old {was:.3f}, new/old {met:.3f}, new/new {now:.3f}; not taught {alone:.3f}, chance {chance:.3f}")
    assert met >= was - 0.01 and met > 0.9 * now and alone < chance + 0.03


@pytest.mark.acceptance
@pytest.mark.parametrize("bits, bar", [(1.0, 0.68), (2.0, 0.83), (4.0, 0.94)])
@pytest.mark.parametrize("name", ["rotated", "additive"])
def test_the_floor_of_quality(name: str, bits: float, bar: float):
    """Vectors asking codes that keep products true."""
    train, q, x = lsa.wikitext()
    found = kept(codecs.fit(train, bits, name, scale="unbiased"), x, q)[1]
    print(f"{name} {bits:g}: {found:.4f}")
    assert found >= bar


@pytest.mark.acceptance
def test_a_scan_keeps_up_with_faiss():
    """A million codes of 256 bits, 64 queries, one core; by turns, medians."""
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    found = codec(Recurrent.start(frame(128, 128), 2, hidden=0))
    index = Index.empty(found)
    peer = faiss.IndexPQFastScan(128, 64, 4, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(found.book.points.numpy().ravel(), peer.pq.centroids)
    peer.is_trained = True
    for _ in range(16):
        codes = found.encode(torch.randn(62_500, 128))
        index.add(codes)
        peer.add(found.book.decode(codes.nibbles).numpy())
    asked = found.encode(torch.randn(64, 128))
    coded = found.book.decode(asked.nibbles).numpy()
    seconds: dict[str, list[float]] = {"ours": [], "faiss": []}
    for _ in range(7):
        for name, search in (("ours", lambda: index.search(asked, 10, oversample=1.0)), ("faiss", lambda: peer.search(coded, 10))):
            begun = time.perf_counter()
            search()
            seconds[name].append(time.perf_counter() - begun)
    ours, theirs = (float(np.median(times[1:])) for times in seconds.values())
    print(f"{64e6 / ours / 1e6:.0f} million codes per second, FAISS {64e6 / theirs / 1e6:.0f}")
    assert ours <= 1.5 * theirs


@pytest.mark.acceptance
def test_a_rotation_that_is_itqs_is_a_start_like_any_other():
    train, q, x = lsa.wikitext()
    matrix = Itq()(train, 256)
    assert kept(codec(Recurrent.start(matrix, 1, 0)), x, q)[0] >= kept(codec(Recurrent.start(frame(256, 256), 1, 0)), x, q)[0]
