"""Coders: snapping column by column is coding at once, on every grid and layout, in bands and under permutations."""

import pytest
import torch
from matrices import on
from torch import Tensor

from bitwright.coder import Band, Coder, metas, prices
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid, Kin
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.terms.base import decode, spec

OUT, INP = 8, 32


def snapped(coder: Coder, W: Tensor) -> Tensor:
    Q = torch.full_like(W, torch.nan)
    for cols in coder.steps():
        Q[:, cols] = coder.snap(W[:, cols], cols)
    return Q


def matrix(dtype: torch.dtype = torch.float32, inp: int = INP) -> tuple[Tensor, Tensor]:
    return torch.randn(OUT, inp, dtype=dtype), torch.rand(inp, dtype=dtype) + 0.1


def check(coder: Coder, W: Tensor) -> Tensor:
    """The law: every column is snapped once, and what was snapped is what the terms of W decode to, bit for bit."""
    seen = torch.cat(coder.steps())
    assert torch.equal(seen.sort().values, torch.arange(W.shape[1]))
    Q, terms = snapped(coder, W), coder.terms(W)
    assert torch.equal(decode(terms).to(W.dtype), Q)
    assert all(torch.equal(decode((a,)), decode((b,))) for a, b in zip(terms, coder.terms(Q)))
    return Q


def test_snapping_column_by_column_is_coding_at_once(grid: Grid, layout: Layout):
    for dtype, inp in ((torch.float32, INP), (torch.float64, INP // 2)):  # every column costs the same: fewer of the second kind
        W, weight = matrix(dtype, inp)
        band = Band(grid, on(grid, layout))
        Q = check(Coder.fit(W, [band], weight), W)
        assert not torch.equal(Q, W)


def test_bands_on_disjoint_columns(few_grids: Grid, layout: Layout):
    W, weight = matrix()
    order = torch.randperm(INP)
    one = Band(few_grids, on(few_grids, layout), order[:16])
    other = Band(Integer(16), Layout(1, 8), order[16:].sort().values)
    coder = Coder.fit(W, [one, other], weight)
    Q = check(coder, W)
    # each band is what it would be on its columns alone
    for band in (one, other):
        alone = Coder.fit(W[:, band.columns], [Band(band.grid, band.layout)], weight[band.columns])
        assert torch.equal(Q[:, band.columns], decode(alone.terms(W[:, band.columns])))


def test_permuted_columns(few_grids: Grid, layout: Layout):
    W, weight = matrix()
    order = torch.randperm(INP)
    Q = check(Coder.fit(W, [Band(few_grids, on(few_grids, layout), order)], weight), W)
    sorted_first = Coder.fit(W[:, order], [Band(few_grids, on(few_grids, layout))], weight[order])
    assert torch.equal(Q[:, order], decode(sorted_first.terms(W[:, order])))


def test_bands_may_have_any_integer_type_of_columns():
    W, _ = matrix()
    for kind in (torch.int32, torch.int64):
        check(Coder.fit(W, [Band(Integer(4), Layout(1, 8), torch.randperm(INP).to(kind))]), W)


def test_refit_moves_its_groups_to_the_new_weights_and_no_others(few_grids: Grid, layout: Layout):
    W, weight = matrix()
    order = torch.randperm(INP)
    one, other = Band(few_grids, on(few_grids, layout), order[:16]), Band(Integer(4), Layout(2, 8), order[16:])
    coder, new = Coder.fit(W, [one, other], weight), torch.randn(OUT, INP)
    shared = [{n: p[n] for n, leaf in band.grid.leaves.items() if leaf.shared != 1} for band, p in zip(coder.bands, coder.params)]
    whole = [
        band.grid.fit(band.layout.split(band.take(new)), prices(band, new, weight), Kin(shared=fixed))
        for band, fixed in zip(coder.bands, shared)
    ]
    for step in (coder.steps()[0], coder.steps()[-1]):
        b, groups = coder.groups(step)
        fresh = coder.refit(new, step)
        assert fresh.bands == coder.bands and fresh.shape == coder.shape
        for i, (before, after, wanted) in enumerate(zip(coder.params, fresh.params, whole)):
            mine = torch.zeros(len(next(iter(before.values()))), dtype=torch.bool)
            mine[groups if i == b else []] = True
            for leaf in before:
                assert torch.equal(after[leaf][~mine], before[leaf][~mine])
                assert torch.equal(after[leaf][mine], wanted[leaf][mine])
        check(fresh, new)


def test_terms_are_foretold(few_grids: Grid, layout: Layout):
    W, weight = matrix()
    bands = [
        Band(few_grids, on(few_grids, layout), torch.arange(0, INP, 2)),
        Band(Integer(3), Layout(1, 8), torch.arange(1, INP, 2)),
    ]
    told, terms = metas((OUT, INP), bands), Coder.fit(W, bands, weight).terms(W)
    assert list(told) == [t.meta() for t in terms]
    for meta, term in zip(told, terms):
        assert spec(meta) == {n: (tuple(t.shape), t.dtype) for n, t in term.tensors().items()}


def cut(*parts: list[int]) -> list[Band]:
    return [Band(Integer(4), Layout(1, None), torch.tensor(part)) for part in parts]


EVERY = list(range(INP))
ILLEGAL = {
    "does not tile the columns": ([Band(Integer(4), Layout(1, 5))], "tile"),
    "does not tile the rows": ([Band(Integer(4), Layout(3, None))], "tile"),
    "half vectors": ([Band(Table("roots4"), Layout(1, 1))], "vector"),
    "odd columns for pairs": ([Band(Table("roots4"), Layout(1, None), torch.arange(INP - 1)), *cut([INP - 1])], "vector"),
    "columns left over": (cut(EVERY[:-1]), "uncoded|left|cover"),
    "a column twice": (cut([0, *EVERY[:-1]]), "twice|overlap|more than once|disjoint"),
    "bands overlap": (cut(EVERY[:20], EVERY[12:]), "twice|overlap|more than once|disjoint"),
    "no such column": (cut([*EVERY[:-1], INP]), "column"),
    "no bands": ([], "band|uncoded"),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal_bands_are_refused_in_words_before_anything_is_coded(case: str):
    bands, words = ILLEGAL[case]
    with pytest.raises((ValueError, BadRequest), match=words):
        Coder.fit(torch.randn(OUT, INP), bands)
