"""Card muvera: sets of vectors as one vector, exact Chamfer, and an index over sets. Text: see token_vectors.py."""

from dataclasses import replace
from pathlib import Path

import pytest
import token_vectors
import torch
from torch import Tensor

from bitwright.embed.chamfer import Sets, carved, chamfer, ranked
from bitwright.embed.muvera import Muvera
from bitwright.embed.setindex import SetIndex
from bitwright.embed.sketches import Signs, Slots
from bitwright.errors import BadRequest

SIZES = (0, 1, 5, 0, 12, 3)


def whole(*sizes: int, dim: int = 6) -> Sets:
    """Whole numbers: sums are exact in any order."""
    return Sets.of([torch.randint(-9, 10, (size, dim)).float() for size in sizes])


def unit(sets: int, size: int, dim: int = 64) -> Sets:
    return Sets.of(list(torch.nn.functional.normalize(torch.randn(sets, size, dim), dim=2)))


def slowly(encoder: Muvera, sets: Sets, documents: bool) -> Tensor:
    """By the definition, token by token."""
    bits = encoder.planes.shape[1]
    rows = []
    for i in range(len(sets)):
        tokens, blocks = sets.part(i, i + 1).tokens, []
        for planes, psi in zip(encoder.planes, encoder.inner):
            cells = [tuple(int((token - encoder.centre) @ plane > 0) for plane in planes) for token in tokens]
            y = psi(tokens)
            for number in range(2**bits):
                own = tuple(number >> j & 1 for j in range(bits))
                inside = [t for t, cell in enumerate(cells) if cell == own]
                block = sum((y[t] for t in inside), torch.zeros(y.shape[1]))
                if documents and inside:
                    block = block / len(inside)
                if documents and encoder.fill and not inside and cells:
                    apart = [sum(a != b for a, b in zip(cell, own)) for cell in cells]
                    block = y[apart.index(min(apart))]
                blocks.append(block)
        rows.append(torch.cat(blocks))
    return torch.stack(rows)


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("fill", [True, False])
def test_blocks_are_those_of_a_slow_loop(bits: int, fill: bool):
    sets = whole(*SIZES)
    encoder = replace(Muvera.drawn(6, 2, bits, 4, seed=bits, centre=torch.randn(6)), fill=fill)
    assert torch.equal(encoder.documents(sets), slowly(encoder, sets, True))
    assert torch.equal(encoder.queries(sets), slowly(encoder, sets, False))


def test_cells_are_binary_numbers_of_their_bits():
    encoder, tokens = Muvera.drawn(6, 1, 7), torch.randn(500, 6)
    cells = encoder.cell(tokens, 0)
    assert (
        torch.equal(cells[:, None] >> torch.arange(7) & 1, (tokens @ encoder.planes[0].T > 0).long()) and len(cells.unique()) > 60
    )


def test_without_planes_there_are_plain_sums_and_means():
    sets, encoder = whole(*SIZES), Muvera.drawn(6, 1, 0, None)
    sums = torch.stack([sets.part(i, i + 1).tokens.sum(0) for i in range(len(sets))])
    assert torch.equal(encoder.queries(sets), sums)
    torch.testing.assert_close(encoder.documents(sets), sums / torch.tensor(SIZES).clamp_min(1)[:, None])


def test_a_lone_token_fills_every_cell_and_no_token_none():
    sets, encoder = whole(0, 1), Muvera.drawn(6, 3, 4, None)
    none, one = encoder.documents(sets)
    assert (none == 0).all() and torch.equal(one.view(-1, 6), sets.tokens.expand(48, 6))
    assert encoder.documents(Sets(torch.empty(0, 6), torch.zeros(1, dtype=torch.long))).shape == (0, 3 * 16 * 6)


def test_documents_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch):
    sets, encoder = whole(*SIZES), Muvera.drawn(6, 2, 3, 4, final=32, seed=3)
    together = encoder.documents(sets)
    monkeypatch.setattr("bitwright.embed.muvera.HELD", 1)
    assert torch.equal(encoder.documents(sets), together)


@pytest.mark.parametrize("kind", [Signs, Slots])
def test_sketches_keep_products_in_the_mean(kind: type[Signs] | type[Slots]):
    x, gen = torch.randn(2, 20), torch.Generator().manual_seed(0)
    drawn = torch.stack([kind.drawn(20, 8, gen)(x) for _ in range(4000)])
    products = (drawn[:, 0] * drawn[:, 1]).sum(1)
    assert abs(float(products.mean() - x[0] @ x[1])) < 4 * float(products.std()) / 4000**0.5


@pytest.mark.parametrize("noise, reached", [(0.05, 0.5), (1e9, 0.1)], ids=["related", "random"])
def test_the_estimate_grows_towards_chamfer_with_the_number_of_planes(noise: float, reached: float):
    """The mean of 200 draws, queries of a document's tokens with noise: the nearer they are, the sooner they share a cell."""
    document = unit(1, 64)
    asked = document.tokens[:16] + noise * torch.randn(16, 64)
    query = Sets.of([torch.nn.functional.normalize(asked)])
    exact, means = float(chamfer(query, document)), []
    for bits in range(0, 9, 2):
        encoder = Muvera.drawn(64, 200, bits, None, seed=bits)
        means.append(float((encoder.queries(query) * encoder.documents(document)).sum()) / 200)
    assert means == sorted(means) and means[0] < 0.3 * exact and reached * exact < means[-1] <= exact


def test_a_centre_tells_tokens_of_one_cone_apart():
    """Tokens that all point one way fall into few cells, unless the planes go through their middle."""
    cone = torch.nn.functional.normalize(torch.randn(60 * 20, 32) + 12, dim=1)
    documents = Sets.of(list(cone.split(20)))
    asked = Sets.of([torch.nn.functional.normalize(part[:6] + 0.01 * torch.randn(6, 32), dim=1) for part in cone.split(20)])
    found = []
    for centre in (torch.zeros(32), cone.mean(0)):
        encoder = Muvera.drawn(32, 10, 4, None, centre=centre)
        estimates = encoder.queries(asked) @ encoder.documents(documents).T
        found.append(float((estimates.argmax(1) == torch.arange(60)).double().mean()))
    assert found[1] > 0.9 and found[1] > found[0] + 0.3


def test_chamfer_is_the_sum_of_the_best_products():
    queries, documents = whole(2, 0, 3), whole(*SIZES)
    scores = chamfer(queries, documents)
    for i in range(3):
        for j in range(len(SIZES)):
            products = queries.part(i, i + 1).tokens @ documents.part(j, j + 1).tokens.T
            assert scores[i, j] == (products.amax(1).sum() if products.shape[1] else 0)
    ids, best = ranked(queries, documents, torch.tensor([[4, 5, -1], [1, 4, 5], [-1, -1, 2]]), 2)
    assert best[0, 0] == scores[0, [4, 5]].max() and ids[2].tolist() == [2, -1] and best[2, 1].isinf()
    assert torch.equal(documents.take(torch.tensor([4, 0, 2])).tokens, torch.cat([documents.tokens[6:18], documents.tokens[1:6]]))


def test_a_ball_is_the_sum_of_what_is_near_its_first_vector():
    a, b, c = torch.eye(3)
    near = torch.nn.functional.normalize(a + 0.2 * b, dim=0)
    balls = carved(Sets.of([torch.stack([a, b, near, c]), torch.stack([b]), torch.empty(0, 3)]), 0.7)
    assert torch.equal(balls.tokens, torch.stack([a + near, b, c, b])) and balls.sizes.tolist() == [3, 1, 0]
    same = unit(3, 5)
    assert torch.equal(carved(same, 1.1).tokens, same.tokens)


def test_numbers_and_not_seeds_are_stored(tmp_path: Path):
    documents, queries = unit(40, 7, 16), unit(3, 4, 16)
    encoder = replace(Muvera.drawn(16, 4, 3, 8, 64, kind=Signs, centre=torch.randn(16)), fill=False)
    index = SetIndex.build(encoder, documents)
    index.save(tmp_path)
    read = SetIndex.open(tmp_path)
    assert not read.encoder.fill and torch.equal(read.encoder.queries(queries), encoder.queries(queries))
    assert torch.equal(read.search(queries, 5, 20).ids, index.search(queries, 5, 20).ids)
    for damage in (b"", (tmp_path / "sets.safetensors").read_bytes()[:-9]):
        (tmp_path / "sets.safetensors").write_bytes(damage)
        with pytest.raises(BadRequest, match="build the index again"):
            SetIndex.open(tmp_path)


def test_bad_sets_get_a_sentence(tmp_path: Path):
    encoder = Muvera.drawn(6)
    for what, words in (
        (lambda: encoder.queries(whole(2, dim=5)), "numbers, not 6"),
        (lambda: Muvera.drawn(6, 0), "no encoding"),
        (lambda: Sets(torch.zeros(3, 2), torch.tensor([0, 2])), "edges"),
        (lambda: SetIndex.open(tmp_path), "no index over sets"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()


# --- on text ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> tuple[token_vectors.Corpus, Tensor]:
    corpus = token_vectors.corpus()
    return corpus, chamfer(corpus.queries, corpus.documents)


def recall(estimates: Tensor, exact: Tensor) -> float:
    """How often the best document is among the first ten."""
    return float((estimates.topk(10).indices == exact.argmax(1, keepdim=True)).any(1).double().mean())


@token_vectors.needed
def test_estimates_follow_chamfer_and_find_what_mean_pooling_misses(text: tuple[token_vectors.Corpus, Tensor]):
    corpus, exact = text
    encoder = Muvera.drawn(64, 10, 5, 16)
    estimates = encoder.queries(corpus.queries) @ encoder.documents(corpus.documents).T
    pooled = Muvera.drawn(64, 1, 0, None)
    means = pooled.queries(corpus.queries) @ pooled.documents(corpus.documents).T
    assert estimates.shape == (200, 2000) and encoder.documents(corpus.documents.part(0, 1)).shape[1] == 5120
    assert float(torch.corrcoef(torch.stack([estimates.flatten(), exact.flatten()]))[0, 1]) >= 0.85
    assert recall(estimates, exact) >= 0.70 and recall(means, exact) <= 0.45


@token_vectors.needed
def test_filling_is_chosen_by_what_it_finds(text: tuple[token_vectors.Corpus, Tensor]):
    """Short documents of scattered tokens: filling harms, and a sample of them says so."""
    corpus = token_vectors.corpus(documents=1500, length=30)
    exact = chamfer(corpus.queries, corpus.documents)
    encoder = Muvera.drawn(64, 10, 5, 16, kind=Signs)
    chosen = encoder.fitted(corpus.queries.part(0, 100), corpus.documents.part(0, 500))
    found = {
        fill: recall(one.queries(corpus.queries) @ one.documents(corpus.documents).T, exact)
        for fill, one in ((fill, replace(encoder, fill=fill)) for fill in (True, False))
    }
    assert found[chosen.fill] == max(found.values()) and not chosen.fill


@token_vectors.needed
@pytest.mark.acceptance
def test_one_bit_per_number_loses_little(text: tuple[token_vectors.Corpus, Tensor]):
    corpus, exact = text
    encoder = Muvera.drawn(64, 20, 5, 32, 4096).fitted(corpus.queries.part(0, 100), corpus.documents.part(0, 500))
    floats = recall(encoder.queries(corpus.queries) @ encoder.documents(corpus.documents).T, exact)
    index = SetIndex.build(encoder, corpus.documents, 1, "least-squares")
    coded = index.index.search(encoder.queries(corpus.queries), 10, 4.0)
    assert (
        index.index.codec.bits == 1 and float((coded.ids == exact.argmax(1, keepdim=True)).any(1).double().mean()) >= floats - 0.03
    )
    assert float((index.search(corpus.queries, 1, 100).ids[:, 0] == exact.argmax(1)).double().mean()) >= 0.9
