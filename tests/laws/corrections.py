"""Corrections: what they store was foretold, they read what they say, and neither units nor dead inputs lead them astray."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.corrections.lorc import Lorc
from bitwright.linalg import objective
from bitwright.terms.base import decode

OUT, INP = 24, 32


def left(E: Tensor, H: Tensor, correction: Any) -> float:
    """Share of the output error that remains."""
    return objective(E - decode(correction(E, Known({"gram": H}))), H) / objective(E, H)


def noise() -> Tensor:
    return (torch.rand(OUT, INP) - 0.5) / 10


def test_terms_are_foretold_and_finite(correction: Any, problem: Any) -> None:
    E, (_, H) = noise(), problem(OUT, INP)
    assert correction.before in (True, False)
    for moments in (H, H * 1e-8, H * 1e8, torch.zeros_like(H), torch.diag(H.diagonal().masked_fill(torch.arange(INP) % 3 == 0, 0))):
        terms = correction(E, Known({"gram": moments}))
        assert [t.meta() for t in terms] == [dict(m) for m in correction.metas((OUT, INP))]
        assert all(torch.isfinite(t.decode()).all() and t.shape == (OUT, INP) for t in terms)


def test_needs_names_every_statistic_that_is_read_and_no_other(correction: Any, problem: Any) -> None:
    E, (_, H) = noise(), problem(OUT, INP)
    values = dict.fromkeys(correction.needs, H)
    assert len(correction(E, Known(dict(values)))) == 1
    for name in correction.needs:
        with pytest.raises(KeyError, match=name):
            correction(E, Known({n: v for n, v in values.items() if n != name}))


def test_moments_that_are_not_finite_are_refused(correction: Any, problem: Any, within: Any) -> None:
    _, H = problem(OUT, INP)
    for bad in (torch.nan, torch.inf):
        broken = H.clone()
        broken[4, 4] = bad
        if correction.needs:
            with within(10), pytest.raises(ValueError, match="finite"):
                correction(noise(), Known({"gram": broken}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_the_unit_of_the_moments_does_not_matter(dtype: Any, problem: Any) -> None:
    """Activations of a ten-thousandth or of ten thousand: the same product, however its two factors are stored."""
    E, (_, H) = noise(), problem(OUT, INP)
    shares = [left(E, H * unit, Lorc(4, dtype=dtype)) for unit in (1e-8, 1.0, 1e8)]
    assert max(shares) <= min(shares) * 1.01


def test_the_unit_of_the_weights_does_not_matter(problem: Any) -> None:
    E, (_, H) = noise(), problem(OUT, INP)
    shares = [left(E * unit, H, Lorc(4)) for unit in (1e-4, 1.0, 1e3)]
    assert max(shares) <= min(shares) * 1.01


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_no_rank_is_spent_on_dead_inputs(unit: float, problem: Any) -> None:
    """Errors at inputs that never fire cost nothing: with them or without, as much of the output error is removed."""
    E, (_, H) = noise(), problem(OUT, INP)
    live = (torch.arange(INP) % 3 > 0).float()
    H = live[:, None] * H * live * unit
    assert left(E, H, Lorc(4)) <= left(E * live, H, Lorc(4)) * 1.01


def test_more_rank_never_leaves_more(problem: Any) -> None:
    E, (_, H) = noise(), problem(OUT, INP)
    for whiten in (True, False):
        shares = [
            objective(E - decode(Lorc(m, whiten)(E, Known({"gram": H}))), H if whiten else torch.eye(INP))
            for m in (1, 2, 4, 8, 16, 24)
        ]
        assert all(b <= a * (1 + 1e-3) for a, b in pairwise(shares))
