"""Modules whose weight is a sum of terms. They hold what is on disk and decode when they run.

Buffers keep their stored types: moving a model to another device moves them, casting it to another float type does not touch
them (a scale rounded twice is not the scale the codes were chosen for).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


class CodedModule(nn.Module):
    """A matrix [out, inp] that is a sum of terms, with the bias and orientation of the module it replaces."""

    def __init__(self, metas: Sequence[dict[str, Json]]):
        super().__init__()
        self.terms = nn.ModuleList(Held(meta) for meta in metas)

    def decoded(self) -> Terms:
        return tuple(held.term() for held in self.terms)  # type: ignore[operator]

    @property
    def weight(self) -> Float[Tensor, "out inp"]:
        """The decoded matrix, fp32."""
        return base.decode(self.decoded())


class CodedLinear(CodedModule):
    """y = x W^T + b, W decoded in fp32 and cast to the type of x. Also stands in for Conv1D, whose weight is stored turned."""

    def __init__(self, metas: Sequence[dict[str, Json]], bias: nn.Parameter | None = None):
        super().__init__(metas)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = metas[0]["shape"]

    def forward(self, x: Float[Tensor, "*batch inp"]) -> Float[Tensor, "*batch out"]:
        bias = self._parameters["bias"]
        return nn.functional.linear(x, self.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class CodedEmbedding(CodedModule):
    """Rows of W by index, in the type the model computes in."""

    def __init__(self, metas: Sequence[dict[str, Json]], dtype: torch.dtype):
        super().__init__(metas)
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = metas[0]["shape"]

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
        return nn.functional.linear(x, self.weight.to(x.dtype))


def install(model: nn.Module, terms: dict[str, list[dict[str, Json]]], tied_head: str | None = None) -> nn.Module:
    """Replace the named modules of a model without weights by coded ones, ready to be loaded."""
    for name, metas in terms.items():
        old: Any = model.get_submodule(name)
        new = (
            CodedEmbedding(metas, old.weight.dtype)
            if isinstance(old, nn.Embedding)
            else CodedLinear(metas, getattr(old, "bias", None))
        )
        model.set_submodule(name, new)
    if tied_head:
        source = next(m for m in model.modules() if isinstance(m, CodedEmbedding))
        model.set_submodule(tied_head, TiedHead(source))
    return model
