"""Vectors as codes: laws of every codec."""

from pathlib import Path

import pytest
import torch
from clusters import DIM, clustered
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed import codecs
from bitwright.embed.book import Book
from bitwright.embed.books import Additive, settled
from bitwright.embed.index import Index
from bitwright.embed.levels import Scalar, lloyd_max, uniform
from bitwright.embed.projections import Dealt, Itq, Principal, Rotation
from bitwright.kernels.dispatch import only
from bitwright.kernels.nibbles_reference import together


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("name", codecs.LINEAR)
def test_the_score_of_a_document_is_the_product_with_what_it_decodes_to(name: str, metric: str):
    x, q = clustered(), clustered(8)
    codec = codecs.fit(x, 1.0, name, metric=metric)
    codes = codec.encode(x)
    hits = Index.build(codec, x).search(q, len(x))
    dense = codec.queries(q) @ codec.decode(codes).T
    torch.testing.assert_close(hits.scores, dense.gather(1, hits.ids), rtol=1e-4, atol=1e-4)
    assert codec.bits <= 1.0 and (hits.scores[:, 1:] <= hits.scores[:, :-1]).all()


@pytest.mark.parametrize("name", codecs.LINEAR)
def test_a_query_may_be_a_code_too(name: str):
    x = clustered()
    codec = codecs.fit(x, 2.0, name)
    codes = codec.encode(x[:5])
    hits = Index.build(codec, x).search(codes, len(x))
    dense = codec.decode(codes) @ codec.decode(codec.encode(x)).T
    torch.testing.assert_close(hits.scores, dense.gather(1, hits.ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["additive", "rotated", "itq", "product"])
def test_more_bits_are_nearer(name: str):
    x = clustered()
    lost = []
    for bits in (0.5, 1.0, 2.0, 4.0):
        codec = codecs.fit(x, bits, name, metric="ip")
        lost.append(float((codec.decode(codec.encode(x)) - x).square().sum()))
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.2 * lost[0]


@pytest.mark.parametrize("name", ["rotated", "uniform", "itq"])
def test_bits_between_two_grids_are_used(name: str):
    x, lost = clustered(), []
    for bits in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        codec = codecs.fit(x, bits, name, metric="ip")
        assert bits - 0.13 < codec.bits <= bits
        lost.append(float((codec.decode(codec.encode(x)) - x).square().sum()))
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0])
def test_bits_where_they_are_worth_most_lose_least(bits: float):
    x, fresh = (torch.randn(2500, DIM) * torch.logspace(0, -1, DIM)).split([2000, 500])

    def lost(name: str) -> float:
        codec = codecs.fit(x, bits, name, metric="ip")
        return float((codec.decode(codec.encode(fresh)) - fresh).square().sum())

    assert lost("additive") < min(lost(name) for name in ("rotated", "itq", "product"))


def test_groups_are_of_equal_worth():
    """Dealt, the products of their variances differ by less than one coordinate's; side by side, by all of them."""
    x = torch.randn(4000, 24) * torch.logspace(0, -2, 24)
    dealt, principal = (projection(x, 24) for projection in (Dealt(4), Principal()))
    torch.testing.assert_close(dealt @ dealt.T, torch.eye(24), atol=1e-5, rtol=0)

    def apart(rows: torch.Tensor) -> float:
        worth = (x @ rows.T).square().mean(0).log().view(4, 6).sum(1)
        return float(worth.max() - worth.min())

    assert apart(dealt) < 2.0 < 20.0 < apart(principal)


def sums(y: torch.Tensor, nibbles: int) -> Book:
    return Additive(turns=0)(y, nibbles)


def test_points_and_codes_settle():
    """Neither turn, points for codes or codes for points, loses more than the one before."""
    y = torch.randn(1500, 12)
    book = sums(y, 6)
    codes = book.encode(y)

    def lost(book: Book, codes: torch.Tensor) -> float:
        return float((y - book.decode(codes)).square().sum())

    before = lost(book, codes)
    for _ in range(3):
        book = settled(book, y, codes)
        assert lost(book, codes) < before
        codes, after = book.encode(y), lost(book, codes)
        assert lost(book, codes) < after
        before = lost(book, codes)


def test_a_sum_is_chosen_better_together_than_nibble_by_nibble():
    y = torch.randn(400, 8)
    book = sums(y, 4)
    rest, codes = y.clone(), []
    for points in book.points:
        codes.append(torch.cdist(rest, points).argmin(1))
        rest -= points[codes[-1]]
    assert float((y - book.decode(book.encode(y))).square().sum()) < 0.97 * float(rest.square().sum())
    every = book.decode(torch.cartesian_prod(*[torch.arange(16)] * 4).to(torch.uint8))
    best = torch.cdist(y[:50], every).amin(1).square().sum()
    assert best <= (y - book.decode(book.encode(y)))[:50].square().sum() < 1.05 * best


@pytest.mark.parametrize("nibbles, dims", [(5, 7), (9, 12), (12, 30)])
def test_kernels_choose_the_same_sums(nibbles: int, dims: int):
    y = torch.randn(600, dims)
    book = sums(y, nibbles)
    assert len(book.starts) == nibbles
    with only("reference"):
        told = book.encode(y)
    found = book.encode(y)
    assert float((found == told).float().mean()) > 0.99
    torch.testing.assert_close(*((y - book.decode(c)).square().sum() for c in (found, told)), rtol=1e-3, atol=0)


def test_no_more_than_eight_nibbles_of_a_run_are_chosen_together():
    runs = [(0, 4)] * 11 + [(4, 2)] * 2 + [(6, 1), (6, 2)]
    starts, widths = (torch.tensor(column, dtype=torch.int32) for column in zip(*runs))
    assert together(starts, widths) == [(0, 8), (8, 11), (11, 13), (13, 14), (14, 15)]


def test_points_of_a_normal_number_are_means_of_what_is_nearest_to_them():
    z = torch.randn(400_000)
    for levels in (2, 4, 16):
        points = lloyd_max(levels)
        nearest = (z[:, None] - points).abs().argmin(1)
        means = torch.stack([z[nearest == i].mean() for i in range(levels)])
        torch.testing.assert_close(points, means, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("name", codecs.LINEAR)
def test_a_codec_is_saved_alone(name: str, tmp_path: Path):
    codec, x = codecs.fit(clustered(), 1.0, name), clustered(50)
    codecs.save(codec, tmp_path / "a.codes")
    again = codecs.load(tmp_path / "a.codes")
    assert again.space_id == codec.space_id and torch.equal(again.decode(again.encode(x)), codec.decode(codec.encode(x)))


@pytest.mark.parametrize("name", codecs.LINEAR)
def test_every_codec_serves_the_whole_dial(name: str):
    """From half a bit to eight, where there are more nibbles than coordinates, each step loses less."""
    x = clustered(600)
    lost = [
        float((codec.decode(codec.encode(x)) - normalize(x)).norm()) for codec in (codecs.fit(x, b, name) for b in (0.5, 2.0, 8.0))
    ]
    assert lost == sorted(lost, reverse=True) and lost[2] < 0.1 * lost[0]


@pytest.mark.parametrize("name", codecs.LINEAR)
def test_compiled_loops_code_as_plain_torch_does(name: str):
    """Close calls may go either way."""
    x, fresh = clustered(900).split([600, 300])
    codec = codecs.fit(x, 2.0, name)
    y = codec.view.seen(fresh)
    with only("reference"):
        plain = codec.book.encode(y)
        near = codec.book.decode(plain)
    codes = codec.book.encode(y)
    assert float((codes != plain).float().mean()) < 1e-3 and torch.equal(codec.book.decode(plain), near)
    torch.testing.assert_close((codec.book.decode(codes) - y).norm(), (near - y).norm(), rtol=1e-4, atol=0)
    for where, dims in ((codec.book.starts - 1, DIM), (codec.book.starts, DIM // 2)):
        with pytest.raises(ValueError, match="do not lie within"):
            Book(where, codec.book.widths, codec.book.points, dims)


@pytest.mark.parametrize("spacing", ["lloyd-max", "uniform"])
def test_grids_of_any_number_of_levels(spacing: str):
    """As many values as asked, each coordinate at the nearest, and more of them lose less."""
    y, lost = torch.randn(4000, 4), []
    for levels in (2, 3, 4, 7, 16) if spacing == "lloyd-max" else (2, 3, 4, 7, 16, 18, 96, 255, 256):
        book = Scalar(levels, spacing)(y, 99)
        near = book.decode(book.encode(y))
        values = near.round(decimals=5).unique()
        assert len(values) == levels or (levels >= 96 and 0.7 * levels < len(values) <= levels)
        torch.testing.assert_close((near - y).abs(), (y[..., None] - values).abs().amin(2), atol=1e-4, rtol=0)
        assert spacing == "lloyd-max" or levels >= 96 or torch.allclose(values.diff(), values.diff()[:1], atol=1e-4)
        lost.append(float((near - y).square().mean()))
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
def test_equal_steps_are_the_best_equal_steps(levels: int):
    """No other step loses less, none at all of the best points loses more; two levels are those of Lloyd and Max."""
    z, points = torch.randn(200_000, generator=torch.Generator().manual_seed(1)), uniform(levels)

    def lost(points: Tensor) -> float:
        cells = torch.bucketize(z, (points[1:] + points[:-1]) / 2)
        return float((z - points[cells]).square().mean())

    assert all(lost(points) < lost(points * stretch) for stretch in (0.9, 1.1))
    assert levels > 16 or lost(lloyd_max(levels)) <= lost(points) * 1.001
    assert levels != 2 or torch.allclose(points, lloyd_max(2), atol=1e-3)


@pytest.mark.parametrize("projection", [Rotation(), Principal(), Itq(rounds=5)])
def test_maps_keep_lengths(projection):
    A = projection(clustered(), 16)
    torch.testing.assert_close(A @ A.T, torch.eye(16), atol=1e-4, rtol=0)
