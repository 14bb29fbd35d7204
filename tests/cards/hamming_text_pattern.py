"""Card hamming-text-pattern: distances of a pattern to every place of a text, by every method, against a slow one."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.kernels import sliding_hamming as sliding
from bitwright.kernels.sliding_methods import Letters, letters


def slowly(text: Tensor, pattern: Tensor) -> Tensor:
    windows = np.lib.stride_tricks.sliding_window_view(text.numpy(), len(pattern))
    return torch.from_numpy((windows != pattern.numpy()).sum(1).astype(np.int32))


def drawn(n: int, letters: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(letters, (n,)).to(dtype)


def cases() -> Iterator[tuple[Tensor, Tensor]]:
    """200 of them: lone letters, patterns as long as the text, one letter, letters that only one of both has, wide letters."""
    for case in range(200):
        n = int(torch.randint(1, 700, ()))
        m = (1, n, int(torch.randint(1, n + 1, ())))[case % 3]
        size = (1, 2, 4, 30, 90)[case % 5]
        shift, kind = (0, size // 2, size)[case % 7 % 3], (torch.uint8, torch.int64, torch.int8, torch.int32)[case % 4]
        yield drawn(n, size, kind), drawn(m, size, kind) + shift
    yield drawn(2000, 400, torch.int64) - 200, drawn(900, 400, torch.int64) - 100
    yield drawn(500, 250), drawn(60, 900, torch.int64)


@pytest.mark.parametrize("name", sliding.METHODS)
def test_every_method_counts_what_the_slow_one_counts(name: str):
    for text, pattern in cases():
        assert torch.equal(sliding.METHODS[name](letters(text, pattern)), slowly(text, pattern)), (len(text), len(pattern))


def test_long_texts_are_transformed_in_blocks():
    text = drawn(100_000, 5)
    for m in (300, 5000):
        pattern = text[777 : 777 + m].clone()
        found = sliding.distances(text, pattern)
        assert found[777] == 0 and all(torch.equal(method(letters(text, pattern)), found) for method in sliding.METHODS.values())


@pytest.mark.acceptance
def test_the_choice_is_near_the_fastest():
    """Twelve cells; times of a machine that does nothing else."""
    slow = []
    for m in (16, 256, 4096):
        for size in (2, 4, 32, 200):
            known = letters(drawn(300_000, size), drawn(m, size))
            taken = {name: best_of(3, method, known) for name, method in sliding.METHODS.items()}
            ratio = taken[sliding.fastest(known)] / min(taken.values())
            slow.append((ratio, m, size, sliding.fastest(known), min(taken, key=lambda name: taken[name])))
    assert max(slow)[0] <= 1.5, slow


def best_of(times: int, method: Callable[[Letters], Tensor], known: Letters) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        method(known)
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.mark.parametrize("size", [1, 2, 4, 16, 13])
def test_all_columns_of_the_matrix_are_exact(size: int):
    text, pattern = drawn(3000, size), drawn(200, size)
    text[::50] = size + 3  # in the text only
    whole = 1 << (size - 1).bit_length()
    found = sliding.estimate(text, pattern, whole)
    torch.testing.assert_close(found.distances, slowly(text, pattern).float(), atol=1e-2, rtol=0)
    assert found.bound < 1e-2


@pytest.mark.parametrize("size, columns", [(64, 4), (64, 16), (64, 32), (4, 2), (200, 16)])
@pytest.mark.parametrize("kind", ["drawn", "skewed", "repeating"])
def test_the_bound_of_an_estimate_holds(size: int, columns: int, kind: str):
    text, pattern = drawn(20_000, size), drawn(1000, size)
    if kind == "skewed":
        text, pattern = (x * drawn(len(x), 2) for x in (text, pattern))
    if kind == "repeating":
        text = text[:900].repeat(23)[:20_000]
        pattern = text[300:1300].clone()
    exact = slowly(text, pattern).float()
    for found in (sliding.estimate(text, pattern, columns), sliding.sampled(text, pattern, 100)):
        assert float(((found.distances - exact).abs() <= found.bound).double().mean()) >= 0.95
        assert found.bound < 0.2 * len(pattern) or columns < 4


def test_more_columns_are_nearer():
    text, pattern = drawn(20_000, 64), drawn(2000, 64)
    bounds = [sliding.estimate(text, pattern, columns).bound for columns in (4, 16, 48, 64)]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < 0.01


@pytest.mark.parametrize("size", [2, 4, 60])
@pytest.mark.parametrize("m", [7, 40, 300])
def test_near_places_are_those_of_the_slow_method(size: int, m: int):
    text, pattern = drawn(20_000, size), drawn(m, size)
    for at, changed in ((0, 0), (500, 1), (5000, 5), (9000, m // 10), (20_000 - m, 3)):
        text[at : at + m] = pattern
        text[at + torch.randperm(m)[:changed]] += 1
    exact = slowly(text, pattern)
    for k in (0, 1, 5, m // 10, m):
        near = sliding.within(text, pattern, k)
        wanted = (exact <= k).nonzero()[:, 0]
        assert torch.equal(near.places, wanted) and torch.equal(near.distances, exact[wanted])
        assert k != 0 or 0 in near.places


def test_bad_requests_name_what_to_give():
    text, pattern = drawn(10, 4), drawn(4, 4)
    for what, words in (
        (lambda: sliding.distances(pattern, text), "1 to 4 letters"),
        (lambda: sliding.distances(text, pattern[:0]), "1 to 10 letters"),
        (lambda: sliding.within(text, pattern, -1), "from 0 on"),
        (lambda: sliding.estimate(text, pattern, 0), "1 or more"),
        (lambda: sliding.sampled(text, pattern, 5), "give 1 to 4"),
    ):
        with pytest.raises(BadRequest, match=words):
            what()
