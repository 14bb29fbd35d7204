"""Steered: queries pass a small network before they meet codes; documents are seen as before, and their codes stay what they are.

    seen(x) = view.seen(x),      asked(q) = view.asked(q'),      q' = |q| f(q) / |f(q)|,      f(q) = S q + MLP(q)

S starts as the identity and the perceptron as nothing, so that whoever learns f (`jpq.py`: from queries with known answers) begins
with the view as it was. A query keeps its length, so scores stay on the scale of the vectors. A code that asks is a document that
asks, and is not steered. As a part of the view f is saved with the codes, and is part of what their space is named by.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn.functional import normalize

from bitwright.embed.learning import Network
from bitwright.embed.views import Asked, View, below, told
from bitwright.terms.base import Json


@dataclass(frozen=True, eq=False)
class Steered:
    view: View
    change: Network

    @classmethod
    def start(cls, view: View, hidden: int = 256, seed: int = 0) -> "Steered":
        """Not yet trained; a view that is steered already, as it is."""
        if isinstance(view, Steered):
            return view
        dice = torch.Generator().manual_seed(seed)
        return cls(view, Network.start(torch.eye(view.dim), hidden, view.dim**0.5, dice))

    @property
    def dim(self) -> int:
        return self.view.dim

    @property
    def dims(self) -> int:
        return self.view.dims

    def seen(self, x: Float32[Tensor, "n inp"]) -> Float32[Tensor, "n dims"]:
        return self.view.seen(x)

    def asked(self, q: Float32[Tensor, "q inp"]) -> Asked:
        return self.view.asked(q.norm(dim=1, keepdim=True) * normalize(self.change(q)))

    def recalled(self, y: Float32[Tensor, "q dims"]) -> Asked:
        return self.view.recalled(y)

    def vectors(self, y: Float32[Tensor, "n dims"]) -> Float32[Tensor, "n inp"]:
        return self.view.vectors(y)

    def tensors(self) -> dict[str, Tensor]:
        parts = {"view": self.view.tensors(), "change": self.change.tensors()}
        return {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}

    def meta(self) -> dict[str, Json]:
        return {"kind": "steered", "view": self.view.meta()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> "Steered":
        held: Mapping[str, Json] = meta["view"]  # type: ignore[assignment]
        return cls(told(below(tensors, "view"), held), Network(**below(tensors, "change")))
