"""Modules whose weight is a sum of terms. They hold what is on disk and decode when they run.

Buffers keep their stored types: moving a model to another device moves them, casting it to another float type does not touch
them (a scale rounded twice is not the scale the codes were chosen for).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitwright.activations import base as activations
from bitwright.activations.base import Activation
from bitwright.activations.static import Static
from bitwright.kernels import dispatch
from bitwright.kernels.packed import Packed
from bitwright.patches import Patches, patches
from bitwright.terms import base
from bitwright.terms.base import Json, Terms


class Held(nn.Module):
    """The tensors of one term, as buffers."""

    def __init__(self, meta: dict[str, Json]):
        super().__init__()
        self.meta = meta
        for name, (shape, dtype) in base.spec(meta).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Held":
        for name, buffer in self._buffers.items():
            if buffer is not None:
                moved = fn(buffer)
                self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    def term(self) -> base.Term:
        return base.load(self.meta, {name: b for name, b in self._buffers.items() if b is not None})


class HeldInputs(nn.Module):
    """What is stored of a matrix's inputs, and the op that quantizes them."""

    def __init__(self, part: Activation):
        super().__init__()
        self.part = part
        for name, (shape, dtype) in activations.spec(part).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    _apply = Held._apply

    def forward(self, x: Float[Tensor, "tokens inp"]) -> Float[Tensor, "tokens inp"]:
        return self.part(x, {name: b for name, b in self._buffers.items() if b is not None})


NUMBERS = itertools.count()
MODULES: "WeakValueDictionary[int, CodedModule]" = WeakValueDictionary()


@torch.library.custom_op("bitwright::product", mutates_args=())
def product(x: Tensor, number: int, out: int) -> Tensor:
    """x W^t for the module of a number: one opaque operator, so that compiled models keep our kernels."""
    return dispatch.matmul(x, MODULES[number].packed())


@product.register_fake
def _(x: Tensor, number: int, out: int) -> Tensor:
    return x.new_empty(len(x), out)


def straight(quantize: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Quantized inputs, with the gradient straight through."""
    y = quantize(x.detach())
    return x + (y - x.detach()) if torch.is_grad_enabled() and x.requires_grad else y


class CodedModule(nn.Module):
    """A matrix [out, inp] that is a sum of terms, with the bias and orientation of the module it replaces; `inputs` quantizes what
    it multiplies, where something does."""

    def __init__(self, metas: Sequence[dict[str, Json]], name: str, inputs: Activation | None = None):
        super().__init__()
        self.inputs = None if inputs is None else HeldInputs(inputs)
        self.terms = nn.ModuleList(Held(meta) for meta in metas)
        self.shape, self.name = tuple(metas[0]["shape"]), name
        self.enlist()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": None}  # a copy makes its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.enlist()

    def enlist(self) -> None:
        """A number by which the operator below finds this module, also inside a compiled graph."""
        self.number = next(NUMBERS)
        self.cache: tuple[Any, Packed] | None = None
        MODULES[self.number] = self

    def decoded(self) -> Terms:
        return tuple(held.term() for held in self.terms)  # type: ignore[operator]

    def packed(self) -> Packed:
        """The matrix as kernels want it, made anew where its tensors were replaced, moved or written to."""
        tensors = [b for held in self.terms for b in held._buffers.values() if b is not None]
        state = [(b.data_ptr(), 0 if b.is_inference() else b._version, b.device) for b in tensors]
        if self.cache is None or self.cache[0] != state:
            self.cache = state, Packed(self.decoded, self.shape, self.name)
        return self.cache[1]

    def product(self, x: Float[Tensor, "*batch inp"]) -> Float[Tensor, "*batch out"]:
        """x W^t in the type of x. Where x asks for gradients, through the decoded matrix, and straight through its own rounding."""
        if self.inputs is not None:
            x = straight(self.inputs, x.reshape(-1, self.shape[1])).view(x.shape)
        if torch.is_grad_enabled() and x.requires_grad:
            return nn.functional.linear(x, self.weight.to(x.dtype))
        flat = x.reshape(-1, self.shape[1])
        if torch.compiler.is_compiling():  # the operator costs as much as a small product
            return product(flat, self.number, self.shape[0]).view(*x.shape[:-1], self.shape[0])
        return dispatch.matmul(flat, self.packed()).view(*x.shape[:-1], self.shape[0])

    @property
    def weight(self) -> Float[Tensor, "out inp"]:
        """The decoded matrix, fp32."""
        return base.decode(self.decoded())


class CodedLinear(CodedModule):
    """y = x W^T + b in the type of x. Also stands in for Conv1D, whose weight is stored turned."""

    def __init__(
        self,
        metas: Sequence[dict[str, Json]],
        bias: nn.Parameter | None = None,
        name: str = "a layer",
        inputs: Activation | None = None,
    ):
        super().__init__(metas, name, inputs)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = self.shape

    def forward(self, x: Float[Tensor, "*batch inp"]) -> Float[Tensor, "*batch out"]:
        bias, y = self._parameters["bias"], self.product(x)
        return y if bias is None else y + bias.to(x.dtype)


class CodedConv(CodedModule):
    """A convolution of x, [n, channels, *places] to [n, out, *places], in the type of x.

    Its few weights meet many places, so decoding them costs less than unfolding x; that is done where every patch is quantized by
    itself. One range for all inputs is applied before x is padded, as engines do it.
    """

    def __init__(
        self,
        metas: Sequence[dict[str, Json]],
        how: Patches,
        bias: nn.Parameter | None = None,
        name: str = "a convolution",
        inputs: Activation | None = None,
    ):
        super().__init__(metas, name, inputs)
        self.register_parameter("bias", bias)
        self.patches = how

    def forward(self, x: Float[Tensor, "n channels *places"]) -> Float[Tensor, "n out *placed"]:
        stored = self._parameters["bias"]
        bias = None if stored is None else stored.to(x.dtype)
        if self.inputs is not None and isinstance(self.inputs.part, Static):
            x = straight(self.inputs, x.flatten(1)).view(x.shape)
        if self.inputs is None or isinstance(self.inputs.part, Static):
            return self.patches.convolved(x, self.weight.to(x.dtype), bias)
        y = self.patches.joined(self.product(self.patches.tokens(x)), x)
        return y if bias is None else y + bias.view(-1, *(1 for _ in self.patches.kernel))


class CodedEmbedding(CodedModule):
    """Rows of W by index, in the type the model computes in."""

    def __init__(self, metas: Sequence[dict[str, Json]], dtype: torch.dtype, name: str = "an embedding"):
        super().__init__(metas, name)
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = self.shape

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight.to(self.dtype))


class TiedHead(nn.Module):
    """An output head that reads the embedding's terms; holds nothing itself."""

    def __init__(self, embedding: CodedEmbedding):
        super().__init__()
        self.tied = (embedding,)  # a tuple, so that the embedding is not registered twice

    @property
    def weight(self) -> Float[Tensor, "out inp"]:
        return self.tied[0].weight

    def forward(self, x: Float[Tensor, "*batch inp"]) -> Float[Tensor, "*batch out"]:
        return self.tied[0].product(x)


def install(
    model: nn.Module,
    terms: dict[str, list[dict[str, Json]]],
    tied_head: str | None = None,
    inputs: Mapping[str, Activation] | None = None,
) -> nn.Module:
    """Replace the named modules of a model without weights by coded ones, ready to be loaded."""
    for name, metas in terms.items():
        old: Any = model.get_submodule(name)
        bias, quantizer = getattr(old, "bias", None), (inputs or {}).get(name)
        new: CodedModule
        if isinstance(old, nn.Embedding):
            new = CodedEmbedding(metas, old.weight.dtype, name)
        elif (how := patches(old)) is not None:
            new = CodedConv(metas, how, bias, name, quantizer)
        else:
            new = CodedLinear(metas, bias, name, quantizer)
        model.set_submodule(name, new)
    if tied_head:
        source = next(m for m in model.modules() if isinstance(m, CodedEmbedding))
        model.set_submodule(tied_head, TiedHead(source))
    return model
