"""Records as text, and text as vectors of length 1 that are trained from nothing: hashed words and their trigrams, added up.

    "[COL] name [VAL] value [COL] ..."        x = normalised(mlp(mean of the vectors of all pieces))

A language model reads a record better where there is one: whatever turns a list of texts into vectors of length 1 may stand here.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from zlib import crc32

import torch
from jaxtyping import Float32
from torch import Tensor, nn


def serialised(record: Mapping[str, object]) -> str:
    return " ".join(f"[COL] {name} [VAL] {value}" for name, value in record.items())


@lru_cache(1 << 18)
def pieces(text: str) -> tuple[int, ...]:
    """Numbers of words and of trigrams of their letters; the same on every machine."""
    words = text.lower().split()
    parts = [f"<{word}>" for word in words]
    parts += [part[i : i + 3] for part in parts for i in range(len(part) - 2)]
    return tuple(crc32(part.encode()) for part in parts)


class Hashed(nn.Module):
    """`slots` vectors for all pieces there may be; `dims` numbers come out."""

    def __init__(self, dims: int = 128, slots: int = 1 << 15, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bag = nn.EmbeddingBag(slots, dims)
            self.mlp = nn.Sequential(nn.Linear(dims, dims), nn.GELU(), nn.Linear(dims, dims))

    def forward(self, texts: Sequence[str]) -> Float32[Tensor, "n dims"]:
        found = [pieces(text) for text in texts]
        sizes = torch.tensor([0, *map(len, found[:-1])])
        ids = torch.tensor([piece for text in found for piece in text]) % self.bag.num_embeddings
        x = self.bag(ids, sizes.cumsum(0))
        return nn.functional.normalize(x + self.mlp(x))
