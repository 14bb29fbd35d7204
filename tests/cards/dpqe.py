"""Card dpqe: codes of a scene's descriptors that are matched by a float view of it, and how many of them to keep."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed.dpq import Dpq, allocate, objective, room
from bitwright.errors import BadRequest
from bitwright.training.loop import Training


def scene(n: int, dim: int = 128, latent: int = 12, seed: int = 0) -> Tensor:
    """Descriptors in clusters on a curved surface, with noise: what one part says of another is not linear."""
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randn(latent, 64, generator=g), torch.randn(64, dim, generator=g)
    words = torch.randn(400, latent, generator=g)
    u = words[torch.randint(400, (n,), generator=g)] + 0.5 * torch.randn(n, latent, generator=g)
    return normalize(torch.tanh(1.5 * u @ first / latent**0.5) @ second / 8 + 0.1 * torch.randn(n, dim, generator=g))


def view(x: Tensor, noise: float, seed: int) -> Tensor:
    return normalize(x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) / x.shape[1] ** 0.5)


@torch.no_grad()
def decoded(dpq: Dpq, x: Tensor) -> Tensor:
    return dpq.decode(dpq.encode(x))


def precision(q: Tensor, made: Tensor) -> float:
    """Of the pairs that are nearest to each other, the share that belongs together."""
    likeness, own = q @ made.T, torch.arange(len(q))
    forth, back = likeness.argmax(1), likeness.argmax(0)
    mutual = back[forth] == own
    return float((forth[mutual] == own[mutual]).float().mean())


def test_untrained_it_is_product_quantization() -> None:
    x = scene(600, 32)
    dpq = Dpq.start(x, 4, 16)
    parts = zip(x.chunk(4, 1), dpq.points)
    plain = torch.cat([points[torch.cdist(part, points).argmin(1)] for part, points in parts], 1)
    torch.testing.assert_close(decoded(dpq, x), normalize(plain))


def test_training_is_kept_where_it_helps_and_what_is_judged_is_stored() -> None:
    x = scene(1200, 32)
    plain, dpq = Dpq.start(x, 2, 32), Dpq.fit(x, 2, 32, hidden=32, how=Training(steps=200))
    losses = [float(objective(x, decoded(one, x), 0.3, 1.0)) for one in (plain, dpq)]
    assert losses[1] < losses[0]
    for tensor in (dpq.points, *dpq.decoder.parameters()):
        assert torch.equal(tensor, tensor.half().float())


def test_the_terms_of_the_objective_are_those_of_a_loop_over_items() -> None:
    x, made = normalize(torch.randn(7, 5)), normalize(torch.randn(7, 5))
    d = lambda a, b: float((a - b).square().sum())  # noqa: E731
    total = 0.0
    for i in range(7):
        others = [j for j in range(7) if j != i]
        a = min(others, key=lambda j: d(x[i], x[j]))
        mixed = d(x[i], made[i]) - min(d(x[i], made[j]) for j in others) + 0.3
        ranked = d(made[i], made[a]) - min(d(made[i], made[j]) for j in others if j != a)
        total += d(x[i], made[i]) + 2.0 * (max(0.0, mixed) + 0.3 * max(0.0, ranked))
    assert float(objective(x, made, 0.3, 2.0)) == pytest.approx(total / 7, rel=1e-4)


@pytest.mark.parametrize("parts, k", [(2, 16), (4, 32), (8, 256)])
def test_as_many_vectors_are_kept_as_fill_the_bytes(parts: int, k: int) -> None:
    dpq = Dpq.start(scene(300, 32), parts, k)
    count = room(40_000, 32, parts, k)
    assert dpq.bytes(count) <= 40_000 < dpq.bytes(count + 2)
    held = sum(p.numel() for p in (dpq.points, *dpq.decoder.parameters()))
    assert dpq.bytes(0) == 2 * held


def test_what_cannot_be_coded_is_refused() -> None:
    for parts, k in ((3, 16), (4, 512), (4, 200)):
        with pytest.raises(BadRequest, match=f"no {parts} parts of {k} points"):
            Dpq.start(scene(100, 32), parts, k)
    with pytest.raises(BadRequest, match="give more bytes"):
        allocate(scene(300, 32), torch.ones(300), 1000, lambda x, m: Dpq.start(x, m), lambda *_: 0.0)


@pytest.mark.acceptance
def test_more_matches_are_right_than_with_product_quantization_and_most_of_all_with_triplets() -> None:
    x = scene(4000)
    q = view(x, 0.6, 5)
    plain = precision(q, decoded(Dpq.start(x, 4), x))
    alone, ours = (precision(q, decoded(Dpq.fit(x, 4, triplets=w, how=Training(steps=800)), x)) for w in (0.0, 1.0))
    assert ours >= plain + 0.02 and plain < alone < ours


@pytest.mark.acceptance
def test_the_best_use_of_bytes_lies_between_few_vectors_and_coarse_ones() -> None:
    """Points are seen unequally often; a query is a view of one of them. Chosen on one set of queries, swept on another."""
    x = scene(12_000, seed=3)
    worth = (1 + torch.randperm(len(x), generator=torch.Generator().manual_seed(1))).float() ** -0.5
    tried: dict[int, tuple[Dpq, Tensor]] = {}

    def found(dpq: Dpq, kept: Tensor, seed: int) -> float:
        truth = torch.multinomial(worth, 6000, generator=torch.Generator().manual_seed(seed))
        nearest = kept[(view(x[truth], 0.4, seed) @ decoded(dpq, x[kept]).T).argmax(1)]
        return float((nearest == truth).float().mean())

    def score(dpq: Dpq, kept: Tensor) -> float:
        tried[len(dpq.points)] = dpq, kept
        return found(dpq, kept, 11)

    dpq, kept, scores = allocate(x, worth, 150_000, lambda rows, m: Dpq.fit(rows, m, how=Training(steps=300)), score)
    swept = {parts: found(*one, 22) for parts, one in tried.items()}
    best = max(swept, key=lambda parts: swept[parts])
    assert dpq.bytes(len(kept)) <= 150_000 and list(scores) == [1, 2, 4, 8, 16, 32]
    assert 1 < best < 32 and max(swept[1], swept[32]) < 0.5 * swept[best]
    assert swept[len(dpq.points)] >= swept[best] - 0.01
