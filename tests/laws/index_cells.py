"""An index in cells: what a query finds, looks at and reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs
from bitwright.embed.index import Index
from bitwright.errors import BadRequest
from bitwright.evaluation.retrieval import overlap

N, DIM, CELLS = 2000, 32, 16


def clustered(n: int, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, DIM, generator=torch.Generator().manual_seed(7))
    chosen = torch.randint(40, (n,), generator=gen)
    return normalize(centres[chosen] + 0.7 * torch.randn(n, DIM, generator=gen))


@pytest.fixture(params=[("rotated", "cosine"), ("additive", "ip")], ids="-".join)
def both(request: pytest.FixtureRequest) -> tuple[Index, Index]:
    """The same documents flat and in cells."""
    name, metric = request.param
    x = clustered(N, 0)
    codec = codecs.fit(x, 2.0, name, metric=metric)
    flat, divided = Index.build(codec, x), Index.build(codec, x)
    divided.divide(CELLS, 3)
    return flat, divided


def test_all_cells_probed_is_the_flat_search(both: tuple[Index, Index]):
    flat, divided = both
    q = clustered(9, 1)
    mask = torch.rand(N) < 0.4
    for k, allowed in ((1, None), (10, None), (10, mask.nonzero()[:, 0]), (N, None)):
        a, b = flat.search(q, k, allowed=allowed), divided.search(q, k, allowed=allowed, probes=CELLS)
        assert torch.equal(a.scores, b.scores) and a.visited == b.visited
        assert torch.equal(a.ids.sort(1).values, b.ids.sort(1).values)


def test_more_probes_find_more_and_read_more(both: tuple[Index, Index]):
    flat, divided = both
    q = clustered(60, 1)
    wanted, each = flat.search(q, 10), [divided.search(q, 10, probes=probes) for probes in (1, 2, 4, 8, 16)]
    found = [float(overlap(hits.ids, wanted.ids).mean()) for hits in each]
    assert found == sorted(found) and found[0] > 0.3 and found[2] > 0.9 and found[-1] > 0.999
    assert [h.visited for h in each] == sorted(h.visited for h in each) and each[0].visited < N / 4
    alone = divided.search(q[:1], 10, probes=1)
    assert alone.bytes_read < wanted.bytes_read / 3 and divided.search(q, 10).visited == divided.search(q, 10, probes=3).visited


def test_filters_hold_inside_cells(both: tuple[Index, Index]):
    divided = both[1]
    allowed = torch.arange(0, N, 7)
    hits = divided.search(clustered(20, 1), 10, allowed=allowed)
    assert torch.isin(hits.ids[hits.ids >= 0], allowed).all() and hits.visited < len(allowed)
    none = divided.search(clustered(20, 1), 3, allowed=torch.tensor([0]), probes=1)
    assert ((none.ids == 0) | (none.ids == -1)).all() and none.scores[none.ids < 0].isinf().all()


def test_what_is_added_removed_and_saved_stays_in_cells(both: tuple[Index, Index], tmp_path: Path):
    flat, divided = both
    more = clustered(101, 2)
    for index in both:
        index.remove(torch.arange(100, 700))
        index.add(more)
    divided.save(tmp_path / "a.codes")
    read = Index.open(tmp_path / "a.codes")
    assert read.cells is not None and read.cells.probes == 3 and torch.equal(read.cells.numbers(), divided.cells.numbers())  # type: ignore[union-attr]
    q = clustered(30, 1)
    a, b, c = flat.search(q, 10), read.search(q, 10, probes=CELLS), read.search(q, 10)
    assert torch.equal(a.scores, b.scores) and float(overlap(c.ids, a.ids).mean()) > 0.8 and c.visited < len(read) / 2
    with pytest.raises(BadRequest, match="choose fewer"):
        flat.divide(5000, 3)
    with pytest.raises(BadRequest, match="choose fewer"):
        flat.divide(5, 6)


def test_documents_keep_their_names(both: tuple[Index, Index]):
    x = clustered(300, 3)
    index = Index.build(both[0].codec, x, [f"d{i}" for i in range(300)])
    index.divide(8, 8)
    assert [index.texts_of(row)[0] for row in index.search(x[:20], 1, oversample=8.0).ids][:5] == [f"d{i}" for i in range(5)]


def test_the_command_divides(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "x.npy", clustered(500, 0).numpy())
    np.save(tmp_path / "q.npy", clustered(2, 1).numpy())

    def run(*words: object) -> int:
        return console.ends(lambda: app(["index", *map(str, words)]))

    assert run("build", tmp_path / "x.npy", "-o", tmp_path / "a.codes", "--codec", "rotated", "--cells", 8, "--probes", 2) == 0
    assert run("search", tmp_path / "a.codes", tmp_path / "q.npy", "-k", 3, "--probes", 8) == 0
    assert "500 documents looked at" in capsys.readouterr().out
