"""Card stationary-representations: a classifier that never moves, and features of two models of unequal size that meet."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitwright.embed import codecs
from bitwright.embed.simplex import Versions, accuracy, higher_order, lesson, simplex
from bitwright.errors import BadRequest

ROOM = 64  # vertices; the old model knows 10 classes, the new one 20
INP = 32


@pytest.mark.parametrize("classes", [2, 3, 10, 1024, pytest.param(4096, marks=pytest.mark.acceptance)])
def test_vertices_are_unit_vectors_at_one_angle(classes: int):
    w = simplex(classes)
    wanted = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    assert w.shape == (classes, classes - 1) and (w @ w.T - wanted).abs().max() < 1e-6
    assert torch.equal(w, simplex(classes))


def test_features_that_agree_and_classes_apart_cost_least():
    labels = torch.arange(8) % 4
    old = simplex(16)[labels].float()
    apart, noisy = higher_order(old, old, labels), higher_order(old + 0.3 * torch.randn_like(old), old, labels)
    assert 0 < apart < noisy
    # what else is of one's own class does not count
    assert torch.equal(higher_order(old[:4], old[:4], labels[:4]), higher_order(old[:4], old[:4], torch.arange(4)))
    assert float(higher_order(old, old, torch.zeros(8, dtype=torch.long))) == pytest.approx(0, abs=1e-5)


def test_measures_of_compatibility():
    versions = Versions(torch.tensor([[0.5, 0.0], [0.6, 0.8]]).double())
    assert versions.share == 1 and versions.mean == pytest.approx((0.5 + 0.6 + 0.8) / 3)
    assert Versions(torch.tensor([[0.5, 0.9], [0.4, 0.8]]).double()).share == 0
    with pytest.raises(BadRequest, match="at least 2"):
        simplex(1)


# --- two models --------------------------------------------------------------------------------------------------------------


def drawn(means: Tensor, each: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(means)).repeat_interleave(each)
    return means[labels] + 1.2 * torch.randn(len(labels), INP, generator=torch.Generator().manual_seed(seed)), labels


def network(hidden: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Linear(INP, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, ROOM - 1, bias=False))
    return nn.Sequential(*layers)


def taught(model: nn.Module, count: int, loss: Callable[[Tensor], Tensor]) -> nn.Module:
    optimizer, dice = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(600):
        optimizer.zero_grad()
        loss(torch.randint(count, (128,), generator=dice)).backward()
        optimizer.step()
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=[0, 1])
def models(request: pytest.FixtureRequest) -> dict:
    """An old model (16 wide, 10 vectors of each of 10 classes) and a new one (128 wide, 100 of each of 20), on one simplex and
    with classifiers of their own; queries and a gallery of the classes that the old gallery holds."""
    means = torch.randn(20, INP, generator=torch.Generator().manual_seed(request.param))
    (few, few_labels), (many, labels) = drawn(means[:10], 10, 3), drawn(means, 100, 1)
    w = simplex(ROOM)
    old, new = network(16, 0), network(128, 1)
    taught(old, len(few), lambda rows: lesson(old(few[rows]), few_labels[rows], w))
    past = old(many)
    taught(new, len(many), lambda rows: lesson(new(many[rows]), labels[rows], w, past[rows]))
    free = []
    for model, x, y in ((network(16, 0), few, few_labels), (network(128, 1), many, labels)):
        head = nn.Sequential(model, nn.Linear(ROOM - 1, 20, bias=False))
        taught(head, len(x), lambda rows, head=head, x=x, y=y: nn.functional.cross_entropy(head(x[rows]), y[rows]))
        free.append(model)
    asked, gallery = drawn(means[:10], 100, 2), drawn(means[:10], 60, 4)
    return {"fixed": (old, new), "free": free, "past": past, "asked": asked, "gallery": gallery}


def matrix(pair: tuple[nn.Module, nn.Module], told: dict) -> Tensor:
    (q, classes), (x, named) = told["asked"], told["gallery"]
    return torch.tensor([[accuracy(a(q), classes, b(x), named) for b in pair] for a in pair], dtype=torch.float64)


def test_new_queries_find_more_in_the_old_gallery_than_old_ones(models: dict):
    fixed, free = (matrix(models[name], models) for name in ("fixed", "free"))
    assert fixed[1, 0] > fixed[0, 0] and Versions(fixed).share == 1
    assert fixed[1, 1] > fixed[0, 0]
    assert free[1, 0] < 0.25 < 0.8 < free[0, 0]  # chance is 0.1


def test_two_bits_on_one_rotation_keep_it(models: dict):
    codec = codecs.fit(models["past"], 2.0, "rotated")
    (old, new), (q, classes), (x, named) = models["fixed"], models["asked"], models["gallery"]
    coded = [codec.decode(codec.encode(v)) for v in (new(q), old(x))]
    assert accuracy(coded[0], classes, coded[1], named) >= accuracy(new(q), classes, old(x), named) - 0.02
