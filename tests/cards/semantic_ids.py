"""Card semantic-ids: ids whose prefixes say what items share, and pieces of them as a vocabulary."""

from itertools import pairwise

import pytest
import torch
import wikitext
from torch import Tensor, nn

from bitwright.embed.pieces import Pieces
from bitwright.embed.semantic_ids import SemanticIds, renew
from bitwright.errors import BadRequest
from bitwright.evaluation.ids import collisions, entropy, use
from bitwright.training.loop import Training


def tree(n: int = 1500, dim: int = 24, seed: int = 0) -> Tensor:
    """Items at the leaves of a tree: large differences between branches, small ones between twigs, noise."""
    g = torch.Generator().manual_seed(seed)
    limbs, twigs = torch.randn(8, dim, generator=g), 0.4 * torch.randn(8, 8, dim, generator=g)
    a, b = torch.randint(8, (2, n), generator=g)
    return limbs[a] + twigs[a, b] + 0.15 * torch.randn(n, dim, generator=g)


def lost(ids: SemanticIds, x: Tensor) -> float:
    return float((x - ids.decode(ids.encode(x))).square().sum(1).mean())


def untrained(x: Tensor, levels: int, points: int) -> SemanticIds:
    return SemanticIds.start(x, levels, points, None, torch.ones(len(x)), 64, 0)


@pytest.fixture(scope="module")
def fitted() -> tuple[Tensor, SemanticIds]:
    x = tree()
    return x, SemanticIds.fit(x, levels=3, points=16, batch=128, how=Training(steps=300))


def test_untrained_it_is_residual_k_means() -> None:
    x = tree()
    ids = untrained(x, 3, 16)
    rest = x @ ids.matrix.T
    for book in ids.books:
        rest = rest - book[torch.cdist(rest, book).argmin(1)]
    torch.testing.assert_close(x - ids.decode(ids.encode(x)), rest @ ids.matrix, atol=1e-4, rtol=1e-3)


def test_training_is_kept_where_it_helps_items_that_it_has_not_seen(fitted: tuple[Tensor, SemanticIds]) -> None:
    x, ids = fitted
    fresh = tree(2500)[1500:]
    assert lost(ids, fresh) < lost(untrained(x, 3, 16), fresh)
    assert (use(ids.encode(x), 16) >= 0.9).all() and (entropy(ids.encode(x)) <= 4).all()


def test_a_prefix_says_the_most_and_every_level_something(fitted: tuple[Tensor, SemanticIds]) -> None:
    x, ids = fitted
    codes = ids.encode(x)
    errors = [float((x - ids.made(ids.chosen(codes)[:level].sum(0))).square().sum().detach()) for level in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[0] - errors[1] > 2 * (errors[1] - errors[3])


def test_fewer_dimensions_inside_and_impressions() -> None:
    """What is shown more often is reconstructed better."""
    x = torch.cat([tree(300, seed=1), tree(1200)])
    shown = torch.where(torch.arange(len(x)) < 300, 20.0, 1.0)
    how = {"levels": 2, "points": 8, "dims": 12, "batch": 128, "how": Training(steps=200)}
    weighed, alike = SemanticIds.fit(x, impressions=shown, **how), SemanticIds.fit(x, **how)
    assert weighed.books.shape == (2, 8, 12) and lost(weighed, x[:300]) < lost(alike, x[:300])


def test_points_that_nothing_chooses_are_renewed() -> None:
    books, rests, idle = torch.zeros(1, 4, 2), torch.randn(1, 6, 2), torch.zeros(1, 4)
    codes = torch.zeros(6, 1, dtype=torch.int64)
    for _ in range(2):
        renew(books, codes, rests, idle, 3)
    assert (books == 0).all()
    renew(books, codes, rests, idle, 3)
    assert (books[0, 0] == 0).all() and torch.equal(books[0, 1:], rests[0, :3]) and (idle == 0).all()


def test_the_share_of_ids_that_are_not_alone() -> None:
    assert collisions(torch.tensor([[1, 2], [1, 2], [2, 1], [0, 0]])) == 0.5


# --- pieces --------------------------------------------------------------------------------------------------------------------


def some_ids(n: int = 2000, levels: int = 4, points: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    codes = (torch.rand(n, levels, generator=g).square() * points).long()
    return codes, (2000 / torch.arange(1, n + 1)).ceil().long()


def test_pieces_spell_every_id_out_seen_or_not() -> None:
    codes, shown = some_ids()
    pieces = Pieces.train(codes[:1000], 8, 96, shown[:1000])
    everything = torch.cartesian_prod(*[torch.arange(8)] * 4)
    assert torch.equal(pieces.decode(pieces.encode(everything)), everything) and pieces.rows <= 96
    assert max(p for item in pieces.encode(everything) for p in item) < pieces.rows


def test_the_same_number_on_two_levels_is_two_symbols() -> None:
    codes = torch.full((4, 3), 5)
    (item,) = Pieces.train(torch.arange(8)[:, None].expand(8, 3), 8, 24).encode(codes[:1])
    assert len(set(item)) == 3


def test_popular_items_have_fewer_pieces() -> None:
    codes, shown = some_ids()
    count = torch.tensor([len(item) for item in Pieces.train(codes, 8, 256, shown).encode(codes)]).float()
    assert count[:50].mean() < count[50:500].mean() < count[500:].mean()


def test_tables_that_are_too_small_and_items_that_are_too_few_are_refused() -> None:
    with pytest.raises(BadRequest, match="32 symbols"):
        Pieces.train(some_ids()[0], 8, 31)
    with pytest.raises(BadRequest, match="too few"):
        SemanticIds.fit(tree(100), points=256)


# --- windows of text -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor, Tensor, SemanticIds]:
    """Embeddings, the article of each, how often each is shown, and ids learned on the first 7,500."""
    (first, a), (second, b) = (wikitext.windows(split) for split in ("valid", "test"))
    order = torch.randperm(len(a) + len(b), generator=torch.Generator().manual_seed(1))
    x, owner = wikitext.lsa(first + second)[order], torch.cat([a, b + 60])[order]
    shown = (20000 / torch.arange(1, len(x) + 1)).ceil().long()[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))]
    return x, owner, shown, SemanticIds.fit(x[:7500])


@pytest.mark.acceptance
def test_held_out_items_are_nearer_than_by_residual_k_means(texts: tuple[Tensor, ...]) -> None:
    x, _, _, ids = texts
    assert lost(ids, x[7500:]) <= lost(untrained(x[:7500], 4, 256), x[7500:])
    assert (use(ids.encode(x), 256) >= 0.9).all()


@pytest.mark.acceptance
def test_the_longer_the_prefix_shared_the_more_alike(texts: tuple[Tensor, ...]) -> None:
    x, _, _, ids = texts
    codes, likeness = ids.encode(x), x @ x.T
    same = ~torch.eye(len(x), dtype=torch.bool)
    means = [float(likeness[same].mean())]
    for level in codes.T:
        same &= level[:, None] == level
        means.append(float(likeness[same].mean()))
    assert all(b - a >= 0.05 or a >= 0.9 for a, b in pairwise(means))


def ranked(items: list[list[int]], rows: int, texts: tuple[Tensor, ...], seed: int) -> float:
    """Accuracy on items never seen of a small ranker that tells an item's article from the sum of its rows of one table."""
    _, owner, shown, _ = texts
    torch.manual_seed(seed)
    table = nn.EmbeddingBag(rows, 64, mode="sum")
    nn.init.normal_(table.weight, 0, 0.1)
    head = nn.Sequential(nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, int(owner.max()) + 1))
    optimizer = torch.optim.Adam([*table.parameters(), *head.parameters()], lr=2e-3)

    def logits(which: Tensor) -> Tensor:
        bags = [items[i] for i in which.tolist()]
        starts = torch.tensor([0, *map(len, bags)]).cumsum(0)[:-1]
        return head(table(torch.tensor([row for bag in bags for row in bag]), starts))

    seen, unseen = torch.arange(len(owner)).tensor_split([int(0.8 * len(owner))])
    for _ in range(40):
        for batch in torch.multinomial(shown[seen].float(), len(seen), replacement=True).split(256):
            loss = nn.functional.cross_entropy(logits(batch), owner[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((logits(unseen).argmax(1) == owner[unseen]).float().mean())


@pytest.fixture(scope="module")
def accuracies(texts: tuple[Tensor, ...]) -> dict[str, float]:
    x, _, shown, ids = texts
    codes, rows, seen = ids.encode(x), 2048, int(0.8 * len(x))
    pieces = Pieces.train(codes[:seen], 256, rows, shown[:seen]).encode(codes)
    single = (codes + 256 * torch.arange(4)).tolist()
    hashed = torch.randint(rows, (len(x), 1), generator=torch.Generator().manual_seed(5)).tolist()
    kinds = {"pieces": pieces, "single": single, "hashed": hashed}
    return {kind: sum(ranked(items, rows, texts, seed) for seed in range(3)) / 3 for kind, items in kinds.items()}


@pytest.mark.acceptance
def test_ids_tell_of_items_never_seen_and_hashes_do_not(accuracies: dict[str, float]) -> None:
    assert min(accuracies["pieces"], accuracies["single"]) >= accuracies["hashed"] + 0.1


@pytest.mark.acceptance
@pytest.mark.xfail(strict=True, reason="measured 51.8 % against 55.2 %: a pair of codes is almost an item of its own here")
def test_pieces_tell_as_much_of_items_never_seen_as_single_codes(accuracies: dict[str, float]) -> None:
    assert accuracies["pieces"] >= accuracies["single"] - 0.005


@pytest.mark.acceptance
def test_pieces_of_text_windows_lose_nothing_and_are_fewer_for_popular_ones(texts: tuple[Tensor, ...]) -> None:
    x, _, shown, ids = texts
    codes = ids.encode(x)
    pieces = Pieces.train(codes, 256, 2048, shown)
    assert torch.equal(pieces.decode(pieces.encode(codes)), codes)
    count = torch.tensor([len(item) for item in pieces.encode(codes)]).float()[shown.argsort(descending=True)]
    parts = [float(part.mean()) for part in count.tensor_split([100, 1000, 4000])]
    assert parts == sorted(parts)
