"""Products: packed codes multiply like the matrix they decode to, whatever the grid, the layout and the other terms."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from matrices import bands_of, coded, differ, module

from bitwright.coder import Coder
from bitwright.errors import BadRequest, Decoded
from bitwright.grids.additive import Additive
from bitwright.grids.base import Grid
from bitwright.grids.codebook import Codebook
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.grids.trit_planes import TritPlanes
from bitwright.layout import Layout
from bitwright.terms.columns import Columns
from bitwright.terms.low_rank import LowRank
from bitwright.terms.sign_lowrank import SignLowRank
from bitwright.terms.sparse import Sparse

GRIDS = [Integer(n) for n in (2, 3, 4, 8, 9, 16, 32, 64, 128, 256)]
GRIDS += [Integer(16, symmetric=True), Table("nf4"), Table("e2m1"), Table("ternary"), Table("binary"), TritPlanes(2), TritPlanes(3)]
GRIDS += [
    Additive(2, 256, 8, rounds=2),
    Additive(3, 5, 4, rounds=2),
    Codebook(256, 4, rounds=2),
    Codebook(16, 2, Float(), rounds=2),
]


@pytest.mark.parametrize("layout", [Layout(1, 16), Layout(1, None), Layout(8, 32), Layout(None, None)], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_product_is_that_of_the_decoded_matrix(grid: Grid, layout: Layout) -> None:
    linear = module(coded(grid, layout))
    for tokens in (1, 5, 16):
        assert differ(linear, torch.randn(tokens, 64)) < 1e-6


@pytest.mark.parametrize("extra", ["low rank", "int8 factors", "sparse", "columns"])
def test_other_terms_are_added(extra: str) -> None:
    E = torch.randn(72, 64)
    factors = torch.randn(72, 3), torch.randn(3, 64)
    term = {
        "low rank": lambda: LowRank.of(*factors, torch.float16),
        "int8 factors": lambda: LowRank.of(*factors, torch.int8),
        "sparse": lambda: Sparse.of(E, 40),
        "columns": lambda: Columns.of(E, 3),
    }[extra]()
    assert differ(module((*coded(Integer(8), Layout(1, 16)), term)), torch.randn(4, 64)) < 1e-6


@pytest.mark.parametrize("kind", ["permuted", "two"])
def test_bands_read_their_own_columns(kind: str) -> None:
    W = torch.randn(16, 32)
    linear = module(Coder.fit(W, bands_of(kind, Integer(8))).terms(W))
    assert differ(linear, torch.randn(2, 32)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_in_its_own_type(dtype: torch.dtype) -> None:
    linear, x = module(coded(Integer(16), Layout(1, 16))), torch.randn(3, 64).to(dtype)
    with torch.no_grad():
        assert linear(x).dtype == dtype
    assert differ(linear, x) < torch.finfo(dtype).eps


def test_what_no_kernel_takes_is_decoded_and_said_once() -> None:
    linear, x = module(coded(Table("roots4"), Layout(1, 16))), torch.randn(2, 64)
    with torch.no_grad(), pytest.warns(UserWarning, match=r"proj is decoded for every product: its codes are vectors\."):
        y = linear(x)
    assert torch.equal(y, x @ linear.weight.T)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(x)


def test_signs_times_thin_factors_are_decoded_and_that_is_said() -> None:
    x, signs = torch.randn(2, 64), SignLowRank.of(torch.randn(72, 64), torch.rand(72, 2), torch.rand(2, 64))
    for terms in ((signs,), (signs, signs), (*coded(Integer(8), Layout(1, 16)), signs)):
        linear = module(terms)
        with torch.no_grad(), pytest.warns(Decoded, match="signs times a thin product"):
            assert torch.equal(linear(x), x @ linear.weight.T)


def test_strictness_refuses_what_no_kernel_takes() -> None:
    linear = module(coded(Table("roots4"), Layout(1, 16)))
    with torch.no_grad(), warnings.catch_warnings(), pytest.raises(BadRequest, match="proj is decoded"):
        warnings.simplefilter("error", Decoded)
        linear(torch.randn(2, 64))


def test_new_tensors_are_seen_and_copies_are_their_own() -> None:
    one, other = module(coded(Integer(16), Layout(1, 16))), module(coded(Integer(16), Layout(1, 16)))
    x = torch.randn(2, 64)
    with torch.no_grad():
        before, wanted, kept = one(x), other(x), copy.deepcopy(one)
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(x), wanted)
        assert torch.equal(kept(x), before)


def test_many_tokens_and_gradients_go_through_the_decoded_matrix() -> None:
    linear, x = module(coded(Integer(16), Layout(1, 16))), torch.randn(40, 64)
    dense = x @ linear.weight.T
    with torch.no_grad():
        assert torch.equal(linear(x), dense)
    few = torch.randn(2, 64, requires_grad=True)
    linear(few).sum().backward()
    assert torch.allclose(few.grad, linear.weight.sum(0).expand(2, -1))


COMPILED = """
import torch
from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.layout import Layout

(term,) = Coder.fit(torch.randn(72, 64), [Band(Integer(16), Layout(1, 16))]).terms(torch.randn(72, 64))
linear, x = CodedLinear([term.meta()]), torch.randn(2, 5, 64)
linear.load_state_dict({f"terms.0.{n}": t for n, t in term.tensors().items()}, assign=True)
model = torch.nn.Sequential(linear, torch.nn.GELU())
with torch.no_grad():
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))
"""


def test_a_compiled_model_keeps_the_operator_in_one_graph() -> None:
    """In a process without the type checks of the tests, which cannot be traced."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_of_inference_mode_works_and_its_copy_starts_without_forms() -> None:
    with torch.inference_mode():
        linear, x = module(coded(Integer(16), Layout(1, 16))), torch.randn(2, 64)
        wanted = linear(x)
        again = copy.deepcopy(linear)
        assert again.cache is None and torch.equal(again(x), wanted)
