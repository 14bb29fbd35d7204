"""What the laws of matrices share: problems, bands, and what it means for terms to be the same."""

import copy

import torch
from torch import Tensor, nn

from bitwright import index
from bitwright.calibrate.stats import Known
from bitwright.coded import CodedLinear
from bitwright.coder import Band, Coder
from bitwright.grids.base import Grid
from bitwright.grids.integer import Integer
from bitwright.grids.learned import Learned
from bitwright.grids.uneven import Uneven
from bitwright.kernels import dispatch
from bitwright.layout import Layout
from bitwright.linalg import objective
from bitwright.rounding.aqlm import Aqlm
from bitwright.rounding.baq import Baq
from bitwright.rounding.base import Rounding
from bitwright.rounding.cvxq import Cvxq
from bitwright.terms.base import Terms, decode

OUT, INP = 16, 32
GROUPS = Layout(1, 16)


def known(H: Tensor) -> Known:
    """Every statistic of the index; lanes alike, so that the teacher's moments are the Gram, and the mean squared gradients are
    those of the layer's own output."""
    return Known(dict.fromkeys(index.PARTS["stats"], H) | {"fisher": H.diagonal().clamp_min(0).expand(OUT, len(H))})


def moves_levels(rounding: Rounding, grid: Grid) -> bool:
    """Whether it takes levels from some groups and gives them to others, or moves the points themselves: then even white inputs do
    not make it nearest."""
    return isinstance(grid, Uneven if isinstance(rounding, Baq | Cvxq) else Learned if isinstance(rounding, Aqlm) else ())


def loss(W: Tensor, terms: Terms, H: Tensor) -> float:
    return objective(W.double() - decode(terms).double(), H.double())


def fitted(W: Tensor, H: Tensor, grid: Grid, layout: Layout = GROUPS) -> Coder:
    return Coder.fit(W, [Band(grid, layout)], H.diagonal().clamp_min(0))


def same(a: Terms, b: Terms) -> bool:
    """Equal in every stored tensor."""
    pairs = zip(a, b, strict=True)
    return all(x.meta() == y.meta() and all(torch.equal(t, y.tensors()[n]) for n, t in x.tensors().items()) for x, y in pairs)


def mixed(inp: int = INP) -> list[Band]:
    """Two bands on shuffled columns."""
    order = torch.randperm(inp)
    return [Band(Integer(16), Layout(1, 8), order[: inp // 2]), Band(Integer(3), Layout(2, inp // 4), order[inp // 2 :])]


def bands_of(kind: str, grid: Grid) -> list[Band]:
    order = torch.randperm(INP)
    return {
        "one": [Band(grid, GROUPS)],
        "permuted": [Band(grid, Layout(2, 8), order)],
        "two": [Band(grid, Layout(1, 8), order[:24]), Band(Integer(16), Layout(None, None), order[24:])],
    }[kind]


def rounded(model: nn.Module, bits: int, group: int = 32) -> nn.Module:
    """Round to nearest on a symmetric absmax grid per group of columns: the plainest compression there is."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        if weight.ndim == 2:
            x = weight.data.view(-1, group)
            scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 0.5)
            x.copy_(((x / scale - 0.5).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5) * scale)
    return model


def module(terms: Terms) -> CodedLinear:
    made = CodedLinear([t.meta() for t in terms], name="proj")
    tensors = {f"terms.{i}.{name}": leaf.clone() for i, t in enumerate(terms) for name, leaf in t.tensors().items()}
    made.load_state_dict(tensors, assign=True)
    return made


def coded(grid: Grid, layout: Layout, shape: tuple[int, int] = (72, 64)) -> Terms:
    W = torch.randn(shape)
    return Coder.fit(W, [Band(grid, layout)]).terms(W)


def differ(linear: CodedLinear, x: Tensor, kernel: str = "numba") -> float:
    """Against the decoded matrix in fp64, by the size that rounding works on: the norms of both factors."""
    with torch.no_grad(), dispatch.only(kernel):
        y = linear(x).double()
    exact = x.double() @ linear.weight.double().T
    return float(((y - exact).norm(dim=1) / (x.double().norm(dim=1) * linear.weight.norm())).max())


def on(grid: Grid, layout: Layout) -> Layout:
    """The layout, or one whose groups hold whole vectors, or enough groups in a row of 16 for what they share."""
    if layout.cols == 1:
        return Layout(layout.rows, grid.width)
    pairs = any(leaf.shared not in (1, "row", "column", "tensor") for leaf in grid.leaves.values())
    return Layout(layout.rows, 8) if pairs else layout
