"""An index over sets of vectors: encodings (MUVERA) as codes of a bit or two per number, candidates ranked again by exact Chamfer.

sets -> `Muvera.documents` -> `Codec` -> `Index`;   query -> `Muvera.queries` -> `Index.search` -> `ranked`

A composition and no more: each part works alone. The tokens are kept for the exact scores, in the type that they come in.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from bitwright.embed import codecs
from bitwright.embed.chamfer import Sets, carved, ranked
from bitwright.embed.index import Index
from bitwright.embed.muvera import Muvera

SAMPLE = 8192  # documents that the codec is fitted on


class Matches(NamedTuple):
    """Best first; scores are exact. `pairs`: query tokens times document tokens that were compared."""

    ids: Int64[Tensor, "q k"]
    scores: Float32[Tensor, "q k"]


@dataclass(frozen=True, eq=False)
class SetIndex:
    encoder: Muvera
    index: Index
    documents: Sets

    @classmethod
    def build(cls, encoder: Muvera, documents: Sets, bits: float = 1.0, codec: str = "rotated") -> "SetIndex":
        """`bits` per number of an encoding. Raises BadRequest for tokens of another size and for too few documents."""
        step = max(1, len(documents) // SAMPLE)
        sample = encoder.documents(documents.take(torch.arange(0, len(documents), step)))
        index = Index.empty(codecs.fit(sample, bits, codec, metric="ip"))
        for first in range(0, len(documents), SAMPLE):
            index.add(encoder.documents(documents.part(first, min(first + SAMPLE, len(documents)))))
        return cls(encoder, index, documents)

    def search(self, queries: Sets, k: int = 10, candidates: int = 100, tau: float | None = None) -> Matches:
        """The best k of `candidates`. `tau`: queries are carved into balls of at least that inner product before they are compared.
        Raises BadRequest where there are not so many documents."""
        found = self.index.search(self.encoder.queries(queries), candidates).ids
        return Matches(*ranked(queries if tau is None else carved(queries, tau), self.documents, found, k))
