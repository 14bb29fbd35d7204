"""Sites: a module is its matrix times its tokens, whatever kind of layer it is; and so is the coded module that replaces it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitwright import index
from bitwright.activations.base import Activation
from bitwright.calibrate.stream import Rows, discover, walk
from bitwright.coded import CodedConv, CodedEmbedding, CodedLinear, install
from bitwright.coder import Band, Coder
from bitwright.layout import Layout
from bitwright.sites import Site, sites

IMAGE, LINE = (2, 8, 9, 7), (2, 8, 11)
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 12), (3, 5, 8)),
    "turned": (lambda: Conv1D(12, 8), (3, 5, 8)),
    "conv": (lambda: nn.Conv2d(8, 12, 3, padding=1), IMAGE),
    "without bias": (lambda: nn.Conv2d(8, 12, 3, bias=False), IMAGE),
    "uneven": (lambda: nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2)), IMAGE),
    "same": (lambda: nn.Conv2d(8, 12, (4, 3), padding="same", padding_mode="reflect"), IMAGE),
    "circular": (lambda: nn.Conv2d(8, 12, 3, padding=(1, 2), padding_mode="circular"), IMAGE),
    "patches": (lambda: nn.Conv2d(8, 12, 4, stride=4), IMAGE),
    "one by one": (lambda: nn.Conv2d(8, 12, 1, stride=2), IMAGE),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4), IMAGE),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), IMAGE),
    "line": (lambda: nn.Conv1d(8, 12, 4, padding=3, stride=2), LINE),
    "causal line": (lambda: nn.Conv1d(8, 8, 4, padding=3, groups=8), LINE),
}
kinds = pytest.mark.parametrize("make, shape", KINDS.values(), ids=list(KINDS))


def site_of(module: nn.Module) -> Site:
    found = Site.of("it", module)
    assert found is not None
    return found


@kinds
@torch.no_grad()
def test_matrix_and_put_are_inverse(make: Any, shape: tuple[int, ...]) -> None:
    site = site_of(make())
    assert site.matrix().shape == site.shape
    W = torch.randn(site.shape)
    site.put(W)
    assert torch.equal(site.matrix(), W)


@kinds
@torch.no_grad()
def test_tokens_times_matrix_is_the_output(make: Any, shape: tuple[int, ...]) -> None:
    module = make()
    site, x = site_of(module), torch.randn(shape)
    if module.bias is not None:
        module.bias.zero_()
    product = site.tokens(x) @ site.matrix().T
    y = module(x)
    if site.patches is not None:
        assert torch.allclose(site.patches.joined(product, x), y, atol=1e-5)
        assert torch.allclose(site.patches.convolved(x, site.matrix(), None), y, atol=1e-5)
        product = site.patches.own(product)
    assert torch.allclose(product, site.outputs(y), atol=1e-5)


def test_gradients_of_the_matrix_come_from_tokens_and_outputs() -> None:
    """The gradient of any loss is outputs(g)^T tokens(x): what the Fisher statistic is made of."""
    for make, shape in KINDS.values():
        module = make()
        site, x = site_of(module), torch.randn(shape)
        y = module(x)
        g = torch.randn_like(y)
        (grad,) = torch.autograd.grad(y, site.weight, g)
        wanted = (grad.T if site.turned else grad).reshape(site.shape)
        assert torch.allclose(site.outputs(g).T @ site.tokens(x), wanted, atol=1e-4)


def coded(module: nn.Module, inputs: Activation | None = None) -> tuple[nn.Module, Tensor]:
    """The module with 8-bit codes instead of its weight, and the matrix that they stand for."""
    site, model = site_of(module), nn.Sequential(module)
    W = site.matrix()
    grid = index.resolve("grids", "integer")(256)
    terms = Coder.fit(W, (Band(grid, Layout(1, None)),)).terms(W)
    new = install(model, {"0": [dict(t.meta()) for t in terms]}, inputs={"0": inputs} if inputs else None)[0]
    state = {f"terms.{i}.{leaf}": t for i, term in enumerate(terms) for leaf, t in term.tensors().items()}
    new.load_state_dict(state, strict=False, assign=True)
    return new, sum(t.decode() for t in terms)  # type: ignore[return-value]


@kinds
@torch.no_grad()
def test_a_coded_module_computes_what_its_codes_say(make: Any, shape: tuple[int, ...]) -> None:
    module = make()
    bias = None if module.bias is None else module.bias.clone()
    new, decoded = coded(module)
    assert isinstance(new, CodedLinear if site_of(module).patches is None else CodedConv)
    site_of(module).put(decoded)
    x = torch.randn(shape)
    if bias is not None:
        module.bias.copy_(bias)
    assert torch.allclose(new(x), module(x), atol=1e-5)


@torch.no_grad()
def test_quantized_inputs_of_a_convolution_are_its_patches() -> None:
    dynamic = index.resolve("activations", "dynamic")(index.resolve("grids", "integer")(256))
    for name in ("conv", "grouped", "uneven"):
        make, shape = KINDS[name]
        module, x = make(), torch.randn(shape)
        plain, _ = coded(module)
        quantized, _ = coded(module, dynamic)
        gap = (quantized(x) - plain(x)).abs().max()
        assert 0 < gap < 0.1 * plain(x).abs().max()


@torch.no_grad()
def test_a_coded_embedding_looks_rows_up() -> None:
    table = nn.Embedding(12, 8)
    new, decoded = coded(table)
    assert isinstance(new, CodedEmbedding)
    ids = torch.randint(12, (3, 4))
    assert torch.equal(new(ids), decoded[ids])
    site_of(table).put(decoded)
    assert torch.equal(site_of(table).matrix(), decoded)


class Fork(nn.Module):
    """Three convolutions of one tensor, two of which see the same patches of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.a(x) + self.b(x) + self.c(x))


@torch.no_grad()
def test_a_tap_is_a_tensor_and_how_it_is_read() -> None:
    block = Fork()
    rows = [Rows(torch.randn(2, 4, 6, 6), [((), {})]) for _ in range(3)]
    x = torch.cat([r.hidden for r in rows])
    here = sites(block, "it.")
    taps = discover(block, here, rows[0], 0)
    assert [tap.readers for tap in taps] == [("it.a", "it.c"), ("it.b",), ("it.d",)]
    wanted, out = {}, block(x)
    for name in ("it.a", "it.b"):
        seen = here[name].tokens(x)
        wanted[name] = seen.T @ seen / len(seen)
    known = {tap.name: known for tap, known in walk(block, here, taps, rows, 0, ("gram",))}
    for name, gram in wanted.items():
        assert torch.allclose(known[name].gram, gram, atol=1e-5)
    assert known["it.d"].notes == ["its 2 groups share the statistics of their inputs"]
    assert torch.allclose(torch.cat([r.hidden for r in rows]), out, atol=1e-6)
