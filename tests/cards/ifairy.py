"""Card ifairy, its post-training part (Fairy2i): the complex view of a real matrix, phases as codes, residual stages, two bits on a
model. The complex transformer of the card (part A to D, check 3) is another model, not a way to compress one: not here."""

import cmath

import pytest
import torch
from matrices import GROUPS, fitted, known, loss, same
from torch import Tensor

import bitwright
from bitwright import recipes
from bitwright.calibrate.stats import Known
from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.rounding.fairy2i import Fairy2i
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.residual import Residual
from bitwright.terms.base import decode, stored_bits
from bitwright.terms.widely_linear import folded, unfolded

STAGES = (0.364, 0.131, 0.0585, 0.033)  # relative squared error on a Gaussian, from the card
WHOLE = Layout(None, None)
ROOTS = Table("roots4", polish=1)
DECODED = pytest.mark.filterwarnings("ignore::bitwright.errors.Decoded")


def complexes(P: Tensor) -> tuple[Tensor, Tensor]:
    """U and W."""
    return tuple(torch.view_as_complex(half.unflatten(1, (-1, 2)).contiguous()) for half in P.chunk(2, 1))  # type: ignore[return-value]


def rounded(W: Tensor, stages: int, inner: object = None) -> tuple:
    rounding = Fairy2i(Residual(stages, inner or Nearest()))  # type: ignore[arg-type]
    return rounding(W, Coder.fit(W, [Band(ROOTS, WHOLE)]), Known())


# --- 1. identity -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out, inp", [(2, 2), (6, 10), (64, 32)])
def test_every_matrix_of_even_size_is_two_complex_ones(out: int, inp: int):
    A, x = torch.randn(out, inp), torch.randn(7, inp)
    P = unfolded(A)
    torch.testing.assert_close(folded(P), A)
    assert float(A.square().sum() / P.square().sum()) == pytest.approx(2, rel=1e-5)
    U, W = complexes(P)
    z = torch.complex(*x.chunk(2, 1))
    y = z @ U.T + z.conj() @ W.T
    torch.testing.assert_close(torch.cat([y.real, y.imag], 1), x @ A.T, rtol=1e-5, atol=1e-5)


@DECODED
def test_the_codes_multiply_as_swaps_and_signs():
    """Each code adds one part of its input, with a sign, to each part of the output: what a kernel would do."""
    W = torch.randn(12, 16)
    terms = rounded(W, 2)
    x, total = torch.randn(5, 16), torch.zeros(5, 12)
    z = torch.complex(*x.chunk(2, 1))
    for term in terms:
        scale = term.inner.params["scale"].float()[:, 0]  # U's, W's
        for half, codes, v in zip((0, 1), term.inner.codes.chunk(2, 1), (z, z.conj())):
            swap, sign = codes % 2 == 1, torch.where(codes < 2, 1.0, -1.0)  # 1, i, -1, -i
            re = torch.where(swap, -v.imag[:, None], v.real[:, None]) * sign
            im = torch.where(swap, v.real[:, None], v.imag[:, None]) * sign
            total += scale[half] * torch.cat([re.sum(2), im.sum(2)], 1)
    module = CodedLinear([t.meta() for t in terms])
    tensors = {f"terms.{i}.{n}": leaf.clone() for i, t in enumerate(terms) for n, leaf in t.tensors().items()}
    module.load_state_dict(tensors, assign=True)
    torch.testing.assert_close(total, x @ decode(terms).T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(x), total, rtol=1e-5, atol=1e-5)


# --- 2. phases, and what stages leave ----------------------------------------------------------------------------------------


def test_codes_are_phases_and_phases_are_signs_behind_a_turn_by_an_eighth():
    x = torch.randn(50, 64)
    p = ROOTS.fit(x)
    codes = ROOTS.encode(x, p)
    z = torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous())
    assert torch.equal(codes.long(), (z.angle() / (torch.pi / 2)).round().long() % 4)
    turned = z * cmath.exp(-0.25j * cmath.pi)  # the sectors become quadrants
    signs = torch.stack([turned.real >= 0, turned.imag >= 0], -1)
    quadrant = torch.tensor([[2, 1], [3, 0]])[signs[..., 0].long(), signs[..., 1].long()]
    assert torch.equal((quadrant + 1) % 4, codes.long())


def test_a_weight_of_nothing_has_the_first_code():
    x = torch.zeros(1, 8)
    x[0, :2] = torch.tensor([0.0, -1.0])
    assert ROOTS.encode(x, ROOTS.fit(x)).tolist() == [[3, 0, 0, 0]]


def test_the_scale_is_the_mean_over_each_codes_own_part():
    x = torch.randn(1, 4096)
    z, p = torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous()), ROOTS.fit(x)
    own = torch.maximum(z.real.abs(), z.imag.abs()).mean()
    assert float(p["scale"]) == pytest.approx(float(own), rel=1e-3) and own == pytest.approx(1.128, rel=0.02)


@pytest.mark.parametrize("grid", [ROOTS, Table("binary", polish=1)], ids=["roots4", "binary"])
def test_stages_leave_what_the_card_says(grid: Table):
    """Within 1 %, and the same for recursive signs: there is no magic in the codes."""
    W = torch.randn(768, 768)
    coder = Coder.fit(W, [Band(grid, WHOLE)])
    for stages, wanted in enumerate(STAGES, 1):
        terms = Residual(stages)(W, coder, Known())
        left = float((W - decode(terms)).square().sum() / W.square().sum())
        assert left == pytest.approx(wanted, rel=0.01)


def test_complex_stages_leave_the_same_and_cost_a_bit_each():
    W = torch.randn(768, 768)
    for stages, wanted in enumerate(STAGES, 1):
        terms = rounded(W, stages)
        assert float((W - decode(terms)).square().sum() / W.square().sum()) == pytest.approx(wanted, rel=0.01)
        assert stored_bits(terms) / W.numel() == pytest.approx(stages, abs=1e-3)


def test_no_stage_makes_it_worse_on_any_grid(few_grids):
    """Where the fit is a least-squares one or absmax alike: what is left never grows, as zero is near enough to a point."""
    W = torch.randn(16, 32)
    coder = Coder.fit(W, [Band(few_grids, GROUPS)], torch.ones(32))
    first, third = (float((W - decode(Residual(n)(W, coder, Known()))).square().sum()) for n in (1, 3))
    assert third < first


# --- feedback ----------------------------------------------------------------------------------------------------------------


def test_gptq_on_the_complex_matrices_minimises_the_real_objective(problem):
    wins = []
    for seed in range(6):
        W, H = problem(32, 48, seed)
        coder = Coder.fit(W, [Band(ROOTS, WHOLE)])
        plain, gptq = (Fairy2i(Residual(2, inner))(W, coder, known(H)) for inner in (Nearest(), GPTQ()))
        wins.append(loss(W, gptq, H) < loss(W, plain, H))
    assert sum(wins) >= 5


def test_white_inputs_make_one_stage_of_gptq_the_nearest_phases():
    W, H = torch.randn(16, 32), torch.eye(32)
    coder = fitted(W, H, ROOTS)
    plain, gptq = (Fairy2i(inner)(W, coder, known(H)) for inner in (Nearest(), GPTQ()))
    assert same(plain, gptq)


def test_odd_sides_are_rounded_as_they_are_and_say_so():
    W, facts = torch.randn(5, 8), Known()
    bands = [Band(ROOTS, WHOLE)]
    found = Fairy2i()(W, Coder.fit(W, bands), facts)
    assert [t.meta() for t in found] == list(Fairy2i().metas((5, 8), bands)) and found[0].meta()["kind"] == "coded"
    assert any("odd" in note for note in facts.notes)


def test_what_has_no_meaning_is_refused():
    from bitwright.rounding.cvxq import Cvxq

    with pytest.raises(BadRequest, match="one stage"):
        Residual(0)
    with pytest.raises(BadRequest, match="does without"):
        Fairy2i(Cvxq())


@DECODED
def test_a_model_is_written_opened_and_the_same(tiny_llama, tmp_path):
    recipe = recipes.fairy2i()
    written, report = bitwright.compress(tiny_llama(), recipe, None, out=tmp_path / "m")
    held, _ = bitwright.compress(tiny_llama(), recipe, None)
    ids = torch.randint(0, 96, (1, 12))
    opened = bitwright.load(tmp_path / "m")
    assert torch.equal(opened(input_ids=ids).logits, written(input_ids=ids).logits)
    torch.testing.assert_close(written(input_ids=ids).logits, held(input_ids=ids).logits)
    assert all(row.terms == ("widely_linear",) * 2 for row in report.rows)


# --- 4. zoo:lm ---------------------------------------------------------------------------------------------------------------


@DECODED
@pytest.mark.acceptance
def test_two_stages_beat_nearest_rounding_to_two_bits_on_a_model():
    """Check 4 of the card: without data against nearest rounding on int2 in groups of 128; GPTQ on both is reported."""
    from bitwright.calibrate.text import text_windows
    from bitwright.evaluation import evaluate
    from bitwright.recipe import Recipe

    data = bitwright.calibration("zoo:lm", samples=64)
    windows, float_model = text_windows("zoo:lm", "stdlib", 32, 512, "evaluation"), bitwright.load("zoo:lm")
    int2 = (Integer(4), Layout(1, 128))
    chosen = {
        "fairy2i": recipes.fairy2i(),
        "fairy2i, gptq": recipes.fairy2i(rounding="gptq"),
        "fairy2i, groups": recipes.fairy2i(group=128),
        "int2": Recipe(*int2, Nearest()),
        "int2, gptq": Recipe(*int2, GPTQ()),
    }
    found = {}
    for name, recipe in chosen.items():
        model, report = bitwright.compress("zoo:lm", recipe, data, device="auto")
        told = evaluate(model, float_model, windows).divergence
        bits = sum(row.bits for row in report.rows) / sum(row.shape[0] * row.shape[1] for row in report.rows)
        found[name] = (told.kl.value, round(bits, 3))
    print(found)
    assert found["fairy2i"][0] < found["int2"][0]
