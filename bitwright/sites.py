"""Site: a weight seen as a matrix [out, inp], and its module's inputs seen as tokens [tokens, inp].

Numerics know matrices, not models; this file is where the one becomes the other. A convolution is the product with unfolded
patches (patches.py); an embedding is a matrix whose rows are looked up, its tokens being the rows of an identity.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from bitwright.patches import Patches, patches


@dataclass(frozen=True, eq=False)
class Site:
    """A module whose `weight` can be compressed. `turned`: the weight is stored [inp, out] (Hugging Face's Conv1D)."""

    name: str
    module: nn.Module
    turned: bool = False

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "Site | None":
        """The module as a site; None where it is not a kind of layer that this file knows."""
        if isinstance(module, nn.Linear | nn.Embedding) or patches(module) is not None:
            return cls(name, module)
        if type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None:
            return cls(name, module, turned=True)
        return None

    @cached_property
    def patches(self) -> Patches | None:
        return patches(self.module)

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.weight.shape[0], self.weight[0].numel()
        return (cols, rows) if self.turned else (rows, cols)

    @property
    def weight(self) -> Tensor:
        weight: Any = self.module.weight
        return weight

    def matrix(self) -> Float[Tensor, "out inp"]:
        """The weight as [out, inp], detached, fp32."""
        W = self.weight.detach().float().flatten(1)
        return W.T.contiguous() if self.turned else W

    def put(self, W: Float[Tensor, "out inp"]) -> None:
        """Overwrite the weight in place: the rows of the stream that pass from now on see this one."""
        self.weight.data.copy_(self.shaped(W))

    def shaped(self, W: Float[Tensor, "out inp"]) -> Tensor:
        """The matrix as the module's own weight, differentiable."""
        return (W.T if self.turned else W).view(self.weight.shape)

    def tokens(self, x: Float[Tensor, "..."]) -> Float[Tensor, "tokens inp"]:
        """The module's input as what its matrix is multiplied with."""
        return x.reshape(-1, x.shape[-1]) if self.patches is None else self.patches.tokens(x)

    def outputs(self, y: Float[Tensor, "..."]) -> Float[Tensor, "tokens out"]:
        """The module's output (or the gradient of it) for every token; zero where a token does not reach a row."""
        return y.reshape(-1, y.shape[-1]) if self.patches is None else self.patches.outputs(y)


def sites(module: nn.Module, prefix: str = "") -> dict[str, Site]:
    """All sites in a module, by full name, in definition order; `prefix` is the module's own name with a dot, or empty."""
    found = {f"{prefix}{name}".rstrip("."): child for name, child in module.named_modules()}
    named = {name: Site.of(name, child) for name, child in found.items()}
    return {name: site for name, site in named.items() if site is not None}
