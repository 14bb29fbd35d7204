"""Site: a weight seen as a matrix [out, inp], and its module's inputs seen as tokens [tokens, inp].

Numerics know matrices, not models; this file is where the one becomes the other.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Site:
    """A module whose `weight` can be compressed. `turned`: the weight is stored [inp, out] (Hugging Face's Conv1D)."""

    name: str
    module: nn.Module
    turned: bool = False

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "Site | None":
        """The module as a site; None where it is not a kind of layer that this file knows."""
        if isinstance(module, nn.Linear | nn.Embedding):
            return cls(name, module)
        if type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None:
            return cls(name, module, turned=True)
        return None

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.weight.shape
        return (cols, rows) if self.turned else (rows, cols)

    @property
    def weight(self) -> Tensor:
        weight: Any = self.module.weight
        return weight

    def matrix(self) -> Float[Tensor, "out inp"]:
        """The weight as [out, inp], detached, fp32."""
        W = self.weight.detach().float()
        return W.T.contiguous() if self.turned else W

    def put(self, W: Float[Tensor, "out inp"]) -> None:
        """Overwrite the weight in place: the rows of the stream that pass from now on see this one."""
        self.weight.data.copy_(self.shaped(W))

    def shaped(self, W: Float[Tensor, "out inp"]) -> Tensor:
        """The matrix as the module's own weight, differentiable."""
        return W.T if self.turned else W

    def tokens(self, x: Float[Tensor, "... inp"]) -> Float[Tensor, "tokens inp"]:
        return x.reshape(-1, x.shape[-1])


def sites(module: nn.Module, prefix: str = "") -> dict[str, Site]:
    """All sites below a module, by full name, in definition order."""
    found = {f"{prefix}{name}": Site.of(f"{prefix}{name}", child) for name, child in module.named_modules()}
    return {name: site for name, site in found.items() if site is not None}
