"""Card functional-hashing: what computes the same has one name, what does not has another, and a search asks less often."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from bitwright.allocation.bound import Proposal, smallest
from bitwright.allocation.equal import Cache, Functions, digest, function_keys
from bitwright.errors import BadRequest

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def outputs(W: Tensor, V: Tensor) -> Tensor:
    return torch.relu(X @ W.T) @ V.T


@pytest.fixture
def layers() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 16, generator=g), torch.randn(24, 32, generator=g)


def shared(a: Tensor, b: Tensor) -> bool:
    return bool(set(function_keys(a)) & set(function_keys(b)))


def test_moves_that_keep_the_function_keep_its_name(layers: tuple[Tensor, Tensor]) -> None:
    W, V = layers
    order, scale = torch.randperm(32), 2.0 ** torch.randint(-3, 4, (32,)).float()
    assert shared(outputs(W, V), outputs(W[order] * scale[:, None], V[:, order] / scale))
    other = outputs((W * 8).round() / 8, V)
    assert not shared(outputs(W, V), other) and digest([W]) != digest([W[order]])


def test_noise_in_the_last_place_keeps_the_name(layers: tuple[Tensor, Tensor]) -> None:
    W, V = layers
    base = outputs(W, V)
    same = sum(shared(base, base * (1 + 1e-6 * torch.randn_like(base))) for _ in range(100))
    assert same >= 98


def test_a_hit_is_confirmed_on_the_numbers() -> None:
    functions, asked = Functions(), itertools.count()
    values = [functions(x, lambda: float(next(asked))) for x in (X, X.clone(), X + 1.0, X)]
    assert values[0] == values[1] == values[3] != values[2] and functions.cache.hits == 2


def test_a_cache_averages_and_forgets() -> None:
    noise = random.Random(0)
    cache = Cache(most=4)
    told = [cache("a", noise.random) for _ in range(9)]
    assert len(set(told)) == 4 and cache.hits == 5
    forgetful, asked = Cache(forget=1.0), itertools.count()
    assert [forgetful("a", lambda: float(next(asked))) for _ in range(3)] == [0.0, 1.0, 2.0]


def test_evolution_with_a_cache_finds_the_same_and_asks_half_as_often() -> None:
    """Six tensors of 2, 3, 4 or 8 bits; a size is charged; candidates are named by their choice."""
    price = [3.0, 1.0, 2.0, 1.0, 4.0, 2.0]

    def fitness(choice: tuple[int, ...]) -> float:
        return sum(p * 4.0**-b for p, b in zip(price, choice)) + 0.004 * sum(choice)

    def evolve(ask) -> tuple[float, tuple[int, ...]]:
        dice = random.Random(3)
        alive = [tuple(dice.choice((2, 3, 4, 8)) for _ in range(6)) for _ in range(30)]
        scored = [(ask(c), c) for c in alive]
        for _ in range(2000):
            parent = min(dice.sample(scored, 5))[1]
            at = dice.randrange(6)
            child = (*parent[:at], dice.choice((2, 3, 4, 8)), *parent[at + 1 :])
            scored = [*scored[1:], (ask(child), child)]
        return min(scored)

    plain, cache = itertools.count(), Cache()
    every = evolve(lambda c: (next(plain), fitness(c))[1])
    asked = itertools.count()
    once = evolve(lambda c: cache(c, lambda: (next(asked), fitness(c))[1]))
    assert once == every and next(asked) <= 0.5 * next(plain)


# --- the bound, which is searched with it ---------------------------------------------------------------------------------------


def search(bound: float, bias: float = 1.7) -> tuple[Proposal, list[int]]:
    """Budgets of 100 to 900 in tens; what is measured is more than foretold, and not evenly."""
    asked: list[int] = []

    def measure(p: Proposal) -> float:
        asked.append(p.bits)
        return bias * p.foretold ** (1 + 0.05 * (p.bits > 400))

    return smallest(lambda b: Proposal((b // 10,), b // 10 * 10, 2.0 ** (-(b // 10) / 8)), measure, 100, 900, 10, bound), asked


@pytest.mark.parametrize("bound", [0.3, 0.1, 0.01, 0.001])
def test_the_smallest_under_a_bound_is_found_by_few_measurements(bound: float) -> None:
    found, asked = search(bound)
    measured = {b: 1.7 * (2.0 ** (-(b // 10) / 8)) ** (1 + 0.05 * (b > 400)) for b in range(100, 910, 10)}
    wanted = min(b for b, kl in measured.items() if kl <= bound)
    assert found.bits - wanted in (0, 10) and measured[found.bits] <= bound and len(asked) <= 12 and len(asked) == len(set(asked))


def test_a_bound_that_nothing_meets_names_what_can_be_had() -> None:
    with pytest.raises(BadRequest, match="has a KL of"):
        search(1e-9)
