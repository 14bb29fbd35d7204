"""Card adadim: where groups along the outputs win, that theory foretells it, no permutation stored, and the choice on a model."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import recipes, zoo
from bitwright.calibrate.stats import Known
from bitwright.calibrate.text import text_windows
from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.errors import Decoded
from bitwright.evaluation import perplexity
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Terms, decode, stored_bits

ALONG, ACROSS = Layout(1, 128), Layout(128, 1)
N, LOUD = 512, 8
METHODS = {"rtn": (Nearest(), Nearest()), "gptq": (GPTQ(), GPTQ(groups="dynamic"))}


def layer(kind: str) -> tuple[Tensor, Tensor]:
    """Weights and second moments of the card's synthetic layers; loud channels have 30 times the activations."""
    W, size, scale = torch.randn(N, N), torch.ones(N), torch.exp(0.5 * torch.randn(N))
    loud = torch.randperm(N)[:LOUD]
    if "loud" in kind:
        size[loud] = 30
    if kind == "columns scaled against the inputs":
        size = 1 / scale
    if "columns scaled" in kind:
        W = W * scale
    if kind == "rows scaled":
        W = W * scale[:, None]
    if "small" in kind or "large" in kind:
        W[:, loud] *= 0.3 if "small" in kind else 3
    x = torch.randn(2 * N, N) * size
    return W, x.T @ x / len(x)


CARD = {  # the objective across over along, between these bounds
    "even": (0.97, 1.03),
    "loud channels": (0.97, 1.15),
    "small loud channels": (0.0, 0.3),
    "columns scaled": (0.0, 0.7),
    "columns scaled against the inputs": (0.0, 0.4),
    "large loud channels": (2.0, 20.0),
    "rows scaled": (1.3, 5.0),
}


def solved(W: Tensor, H: Tensor, method: str, across: bool, bits: int = 3) -> Terms:
    coder = Coder.fit(W, [Band(Integer(2**bits), ACROSS if across else ALONG)])
    return METHODS[method][across](W, coder, Known({"gram": H}))


def measured(W: Tensor, H: Tensor, method: str) -> float:
    across, along = (objective(W - decode(solved(W, H, method, a)), H) for a in (True, False))
    return across / along


def foretold(W: Tensor, H: Tensor) -> float:
    """No rounding, no inputs but their energies: sum_ij H_jj step_ij^2 / 12 of both layouts."""
    found = []
    for layout in (ACROSS, ALONG):
        groups = layout.split(W)
        steps = (groups.amax(1, keepdim=True).clamp_min(0) - groups.amin(1, keepdim=True).clamp_max(0)) / 7
        found.append(float((layout.join(steps.square().expand_as(groups), (N, N)) * H.diagonal()).sum() / 12))
    return found[0] / found[1]


# --- 1. where it wins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CARD)
def test_groups_across_win_and_lose_where_the_card_says(kind: str, method: str):
    low, high = CARD[kind]
    assert low <= measured(*layer(kind), method) <= high


@pytest.mark.parametrize("kind", CARD)
def test_ranges_and_energies_alone_foretell_which_is_better(kind: str):
    W, H = layer(kind)
    told, found = foretold(W, H), measured(W, H, "rtn")
    assert told == pytest.approx(found, rel=0.25)
    if abs(found - 1) > 0.05:
        assert (told < 1) == (found < 1)


def test_scaling_the_input_channels_changes_nothing_across():
    """AWQ and SmoothQuant have nothing to do there: a channel's own scale absorbs theirs."""
    W, _ = layer("even")
    s = 2.0 ** torch.randint(-3, 4, (N,))
    codes = [Coder.fit(M, [Band(Integer(8), ACROSS)]).terms(M)[0].codes for M in (W, W * s)]
    assert torch.equal(*codes)


# --- 3, 4. what is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_bits_are_the_same_both_ways_and_no_permutation_is_stored(method: str):
    W, H = layer("small loud channels")
    for bits in (3, 4):  # at 3 bits the zeros of a row are padded to words of three bytes
        along, across = (solved(W, H, method, a, bits) for a in (False, True))
        assert 0 <= stored_bits(along) - stored_bits(across) <= (12 * N if bits == 3 else 0)
    assert "columns" not in across[0].tensors()
    (told,) = METHODS[method][1].metas((N, N), [Band(Integer(16), ACROSS)])
    assert dict(told) == across[0].meta()


def test_the_product_across_is_that_of_the_decoded_matrix():
    W, H = layer("small loud channels")
    terms = solved(W, H, "gptq", True)
    module = CodedLinear([t.meta() for t in terms])
    tensors = {f"terms.0.{name}": t.clone() for name, t in terms[0].tensors().items()}
    module.load_state_dict(tensors, assign=True)
    x = torch.randn(4, N)
    exact = x @ decode(terms).T
    with pytest.warns(Decoded, match="multiple of 4"):  # no kernel for groups inside one column yet
        assert (module(x) - exact).norm() <= 1e-3 * exact.norm()


def test_a_menu_without_a_budget_takes_what_loses_least(tiny_llama, tokens):
    """Sixteen levels or two: nothing is spent, so every matrix takes sixteen, by nearest rounding as well."""
    for rounding in (Nearest(), GPTQ()):
        menu = tuple(Rule("re:.*", grid=Integer(n)) for n in (2, 16))
        recipe = replace(recipes.adadim(), layout=Layout(1, 32), rounding=rounding, menu=menu)
        _, report = bitwright.compress(tiny_llama(), recipe, tokens())
        assert all(row.bits / (row.shape[0] * row.shape[1]) > 4 for row in report.rows)


# --- 2. zoo:lm ---------------------------------------------------------------------------------------------------------------


def fixed(method: str, across: bool) -> Recipe:
    return Recipe(Integer(8), Layout(64, 1) if across else Layout(1, 64), METHODS[method][across])


@pytest.fixture(scope="module")
def rounded() -> tuple[dict[str, float], dict[str, Tensor]]:
    """Perplexities and block errors of nearest rounding along, across and as chosen."""
    data, ids = bitwright.calibration("zoo:lm", samples=16), text_windows("zoo:lm", "stdlib", 32, 512, "evaluation").ids
    models, method = {}, "rtn"
    tried = {"along": fixed(method, False), "across": fixed(method, True), "chosen": recipes.adadim(3, 64, method)}
    for name, recipe in tried.items():
        models[name], report = bitwright.compress("zoo:lm", recipe, data)
        assert report.bpw_linears == pytest.approx(3 + 19 / 64, abs=0.04)
    return {n: float(perplexity.nll(m, ids).mean().exp()) for n, m in models.items()}, block_errors(models, ids[:8])


@pytest.mark.acceptance
def test_on_the_model_the_choice_is_as_good_as_the_better_dimension(rounded):
    told, _ = rounded
    assert told["chosen"] <= min(told["along"], told["across"])


@pytest.mark.acceptance
@pytest.mark.xfail(
    strict=True, reason="on 5 of 6 blocks: chosen is what the whole model's KL likes, and units hold q, k and v together"
)
def test_the_choice_has_the_smallest_error_on_nine_blocks_of_ten(rounded):
    _, errors = rounded
    best = torch.minimum(errors["along"], errors["across"])
    assert (errors["chosen"] <= 1.001 * best).float().mean() >= 0.9


def block_errors(models: dict[str, torch.nn.Module], ids: Tensor) -> dict[str, Tensor]:
    """Mean squared error of every block's output, each on the float model's inputs."""
    float_model = bitwright.load(zoo.path("lm"))
    found = {name: [] for name in models}

    def compare(i: int):
        def hook(_, args, kwargs, out):
            for name, model in models.items():
                other = model.model.layers[i](*args, **kwargs)
                other, own = (o[0] if isinstance(o, tuple) else o for o in (other, out))
                found[name].append(float((other - own).square().mean()))

        return hook

    for i, block in enumerate(float_model.model.layers):
        block.register_forward_hook(compare(i), with_kwargs=True)
    with torch.no_grad():
        float_model(ids, use_cache=False)
    return {name: torch.tensor(errors) for name, errors in found.items()}
