"""Records as text, "[COL] name [VAL] value [COL] ...", and text as vectors of length 1.

`Language`   the states of a language model, averaged and mapped: what the paper tunes (RoBERTa-base)
`Hashed`     hashed words and trigrams of their letters, added up, and a small network: trained from nothing, in seconds

Both are modules that take a list of texts; anything else that does may stand in their place.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from bitwright.errors import BadRequest


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


class Language(nn.Module):
    """A model of the transformers library in a local folder; texts end after `length` tokens. Raises BadRequest for none."""

    def __init__(self, folder: Path, dims: int = 128, length: int = 128, seed: int = 0) -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__()
        if not (folder / "config.json").is_file():
            raise BadRequest(f"There is no model in {folder}; name a folder with config.json, weights and a tokenizer.")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model, self.length = AutoModel.from_pretrained(folder, local_files_only=True), length
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.map = nn.Linear(self.model.config.hidden_size, dims)

    def forward(self, texts: Sequence[str]) -> Float32[Tensor, "n dims"]:
        read = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        states, there = self.model(**read).last_hidden_state, read["attention_mask"][:, :, None]
        return nn.functional.normalize(self.map((states * there).sum(1) / there.sum(1)))
