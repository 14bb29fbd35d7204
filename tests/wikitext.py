"""Text for the cards that retrieve: articles of WikiText-2, their windows and paragraphs, and embeddings made from counts of words.

The text lies beside the project in shared/data, or where BITWRIGHT_DATA says; without it a test that needs it is skipped.
"""

import os
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from torch import Tensor

DATA = Path(os.environ.get("BITWRIGHT_DATA", Path(__file__).parents[2] / "shared/data"))


@cache
def articles(split: str) -> list[list[str]]:
    """Of `valid` or `test`: a list of paragraphs each, headings left out."""
    file = DATA / f"wikitext2/{split}.txt"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    found: list[list[str]] = []
    for line in file.read_text().splitlines():
        if re.match(r" = [^=].* = $", line):
            found.append([])
        elif found and line.strip() and not line.startswith(" ="):
            found[-1].append(line.strip())
    return [article for article in found if article]


def windows(split: str, words: int = 50) -> tuple[list[str], Tensor]:
    """Texts of so many words, and which article each is from."""
    texts, owners = [], []
    for i, article in enumerate(articles(split)):
        run = " ".join(article).split()
        for at in range(0, len(run) - words + 1, words):
            texts.append(" ".join(run[at : at + words]))
            owners.append(i)
    return texts, torch.tensor(owners)


def counts(texts: list[str], size: int = 8192) -> csr_array:
    """1 + log of how often each word is there, words hashed to `size` columns; punctuation and <unk> left out."""
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        found: dict[int, int] = {}
        for word in re.findall(r"[a-z0-9]{2,}", text.lower().replace("<unk>", " ")):
            column = zlib.crc32(word.encode()) % size
            found[column] = found.get(column, 0) + 1
        rows += [row] * len(found)
        columns += found
        values += [1 + np.log(n) for n in found.values()]
    return csr_array((np.array(values, dtype=np.float32), (rows, columns)), shape=(len(texts), size))


def rarity(bags: csr_array) -> np.ndarray:
    """log(n / texts that hold the word)."""
    n = bags.shape[0]
    return np.log((n + 1) / (1 + np.bincount(bags.indices, minlength=bags.shape[1]))).astype(np.float32)


def lsa(texts: list[str], dim: int = 256) -> Tensor:
    """Latent semantic embeddings of unit length."""
    bags = counts(texts)
    weighted = bags.multiply(rarity(bags)).tocsr()
    left, size, _ = svds(weighted, k=dim, random_state=0)
    return torch.nn.functional.normalize(torch.from_numpy((left * size)[:, ::-1].astype(np.float32).copy()))
