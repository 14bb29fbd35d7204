"""Joint roundings: what holds for all of them, alone on a matrix, on a block, on a model."""

import dataclasses
from typing import Any

import pytest
import torch
from matrices import INP, OUT, fitted, known, loss, same
from variants import joints

import bitwright
from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.cora import Cora
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.layerwise import Layerwise
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.neighbours import around, nearest
from bitwright.terms.base import decode
from bitwright.training.loop import Training
from bitwright.training.problem import Subject
from bitwright.training.ranges import Ranges
from bitwright.training.scopes import Block, Layer, Model, shares

ALL = pytest.mark.parametrize("joint", joints(fixed=False), ids=lambda j: type(j).__name__)


def retrained(joint: Any, **changes: Any) -> Any:
    return dataclasses.replace(joint, training=dataclasses.replace(joint.training, **changes))


@ALL
@pytest.mark.parametrize("grid", [Integer(4), Table("nf4"), Table("e2m1")], ids=lambda g: getattr(g, "table", "integer"))
def test_training_never_ends_above_its_start_and_keeps_its_terms(joint: Any, grid: Any, problem):
    W, H = problem(OUT, INP)
    coder = fitted(W, H, grid)
    for start in (Nearest(), GPTQ()):
        begun = start(W, coder, known(H))
        found = Layerwise(dataclasses.replace(joint, start=start))(W, coder, known(H))
        assert loss(W, found, H) <= loss(W, begun, H) * (1 + 1e-5)
        assert [t.meta() for t in found][: len(begun)] == [t.meta() for t in begun]


@ALL
def test_no_steps_give_the_start_bit_for_bit_and_a_seed_gives_the_same_codes(joint: Any, problem):
    W, H = problem(OUT, INP)
    coder = fitted(W, H, Integer(8))
    plain = dataclasses.replace(joint, budget=0.0) if isinstance(joint, Cora) else joint
    assert same(Layerwise(retrained(plain, steps=0))(W, coder, known(H)), joint.start(W, coder, known(H)))
    first, second = (Layerwise(joint)(W, coder, known(H)) for _ in range(2))
    assert same(first, second)


def test_each_of_them_improves_on_nearest_where_inputs_are_correlated(problem):
    """With steps enough, on the layer's own objective; the straight-through ones by moving ranges too."""
    W, H = problem(OUT, INP)
    coder = fitted(W, H, Integer(4))
    plain = loss(W, Nearest()(W, coder, known(H)), H)
    for joint in joints(fixed=False, steps=150):
        found = Layerwise(dataclasses.replace(joint, start=Nearest()))(W, coder, known(H))
        assert loss(W, found, H) < plain, type(joint).__name__


@ALL
def test_a_joint_rounding_is_not_mistaken_for_one_of_a_matrix(joint: Any):
    assert isinstance(joint, JointRounding) and not isinstance(joint, Rounding)
    assert Recipe(rounding=joint).alone is joint.start and Recipe(rounding=joint).needs == ("gram",)
    assert Recipe.from_dict(Recipe(rounding=joint).to_dict()) == Recipe(rounding=joint)


@pytest.mark.parametrize("learned", [True, False])
def test_what_the_loss_sees_is_what_would_be_stored_and_gradients_are_as_stated(learned: bool, problem):
    W, H = problem(OUT, INP)
    ranges = Ranges(fitted(W, H, Integer(4)), W, learned)
    V = (1.7 * W).requires_grad_()
    What = ranges.snap(V)
    assert torch.equal(What, decode(ranges.now().terms(V.detach())))
    G = torch.randn(OUT, INP)
    found = torch.autograd.grad((G * What).sum(), [V, *ranges.tensors()])
    low, high = ranges.ends
    inside = (low <= V) & (high >= V)
    assert 0 < inside.float().mean() < 1
    assert torch.equal(found[0], G * inside)
    if learned:
        each = G * (What - V * inside)
        torch.testing.assert_close(found[1], Layout(1, 16).split(each.detach()).sum(1, keepdim=True))


def test_candidates_enclose_a_number_or_are_the_nearest():
    points = torch.tensor([[3.0, -1.0, 0.5, 10.0]])
    x = torch.tensor([[-5.0, 0.0, 0.5, 4.0, 99.0]])
    all_four = torch.tensor([[4]])
    low, high = (points[0][c] for c in around(x, points, all_four))
    assert low.tolist() == [[-1.0, -1.0, -1.0, 3.0, 3.0]] and high.tolist() == [[0.5, 0.5, 0.5, 10.0, 10.0]]
    first = points[0][nearest(x[..., None], points[..., None], all_four, 3)[0]]
    assert first.tolist() == [[-1.0, 0.5, 0.5, 3.0, 10.0]]
    for most in (1, 2):  # groups with fewer points than the grid has codes
        few = torch.tensor([[most]])
        assert around(x, points, few).max() < most and nearest(x[..., None], points[..., None], few, 2).max() < most


def test_outliers_and_columns_in_any_order_stay_where_they_are(problem):
    from bitwright.coder import Band, Coder
    from bitwright.corrections.outliers import Outliers

    W, H = problem(OUT, INP)
    out = Outliers(0.05)(W, known(H))
    rest = W - decode(out)
    order = torch.randperm(INP)
    bands = [Band(Integer(4), Layout(1, 8), order[:16]), Band(Integer(8), Layout(1, None), order[16:])]
    start = (*Coder.fit(rest, bands).terms(rest), *out)
    for joint in joints(fixed=False):
        layer = Layerwise(joint)
        found = layer(W, Coder.fit(rest, bands), known(H), start)
        assert same(found[2:3], start[2:]) and loss(W, found, H) <= loss(W, start, H) * (1 + 1e-5)


def test_what_cannot_be_trained_is_refused_in_words(problem):
    from bitwright.rounding.bitstack import BitStack

    W, H = problem(OUT, INP)
    coder = fitted(W, H, Integer(4))
    stack = BitStack(2)(W, coder, known(H))
    with pytest.raises(BadRequest, match="start it from another"):
        Subject(W, stack, known(H)).coder  # noqa: B018
    twice = (*coder.terms(W), *coder.terms(W - decode(coder.terms(W))))
    with pytest.raises(BadRequest, match="start it from another"):
        Subject(W, twice, known(H)).coder  # noqa: B018
    with pytest.raises(BadRequest, match="--samples"):
        shares(1, 0.125)


@ALL
@pytest.mark.parametrize(
    "scope", [Block(), Model(), Block("mixed", "same", "cosine"), Layer()], ids=["block", "model", "mixed", "layer"]
)
def test_a_model_goes_the_road_and_its_held_out_loss_does_not_rise(joint: Any, scope: Any, tiny_llama, tokens):
    short = retrained(dataclasses.replace(joint, scope=scope), steps=4)
    recipe = Recipe(Integer(4), Layout(1, 32), short, rules=(Rule("re:.*down_proj", rounding=Nearest()),), name="joint")
    data = tokens()
    model, report = bitwright.compress(tiny_llama(), recipe, data, batch=2)
    told = [note for row in report.rows for note in row.notes if "steps" in note]
    assert told and not any("down_proj" in row.name and "steps" in " ".join(row.notes) for row in report.rows)
    logits = model(input_ids=data.ids[:2]).logits
    assert torch.isfinite(logits).all() and logits.shape == (*data.ids[:2].shape, 96)


def test_a_trained_model_is_written_and_resumed_like_any_other(tiny_llama, tokens, tmp_path):
    from bitwright.rounding.flexround import FlexRound
    from bitwright.rounding.pv_tuning import PvTuning

    data, source = tokens(), tiny_llama()
    for joint in (FlexRound(training=Training(steps=3)), PvTuning(training=Training(steps=3, optimizer="lamb"))):
        recipe = Recipe(Integer(8), Layout(1, 32), joint, name="joint")
        out = tmp_path / type(joint).__name__
        written, _ = bitwright.compress(source, recipe, data, out=out, batch=2)
        held, _ = bitwright.compress(source, recipe, data, batch=2)
        ids = data.ids[:1]
        torch.testing.assert_close(written(input_ids=ids).logits, held(input_ids=ids).logits)


def test_after_the_model_was_trained_errors_are_told_by_what_they_are_measured_by(tiny_llama, tokens):
    from bitwright.checkpoint import open_checkpoint
    from bitwright.rounding.pv_tuning import PvTuning

    joint = PvTuning(start=Nearest(), training=Training(steps=2, optimizer="lamb"))
    recipe = Recipe(Integer(8), Layout(1, 32), joint, name="joint")
    model, report = bitwright.compress(tiny_llama(), recipe, tokens(), batch=2)
    row, source = report.rows[0], open_checkpoint(tiny_llama())
    W = source.tensor(f"{row.name}.weight").float()
    E = W - decode(model.get_submodule(row.name).decoded())
    assert row.measure == "weights" and row.error == pytest.approx(float(E.square().sum() / W.square().sum()), rel=1e-4)
    plain, _ = bitwright.compress(tiny_llama(), dataclasses.replace(recipe, rounding=Nearest()), None)
    E = W - decode(plain.get_submodule(row.name).decoded())
    assert row.nearest == pytest.approx(float(E.square().sum() / W.square().sum()), rel=1e-4)
