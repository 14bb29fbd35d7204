"""Embeddings without a model: windows of WikiText-2 by TF-IDF on their leading singular directions (latent semantic analysis).

The set on which the cards of the embedding room were measured: 256 dimensions, 6.9 thousand vectors to train on, 1,033 queries,
4.4 thousand documents, drawn from one order of all windows. The encoder has seen all of them, as models have; codecs must not.
Tests skip where the text is not there.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import svds
from torch import Tensor
from wikitext import DATA

TEXT = DATA / "wikitext2"
WORDS = 33  # of a window
QUERIES, DOCUMENTS = 1033, 4400


class Set(NamedTuple):
    train: Tensor
    queries: Tensor
    documents: Tensor


@cache
def wikitext(dims: int = 256) -> Set:
    """Unit vectors [n, dims]. The same windows in the same order for every number of dimensions."""
    texts, _ = windows()
    counts = counted(texts)
    seen = np.asarray((counts > 0).sum(0))[0]
    x = counts.log1p() @ sparse.diags(np.where(seen > 1, np.log(len(texts) / seen), 0.0))
    directions = svds(x, dims, v0=np.ones(min(x.shape)))[2][::-1]
    return split(torch.nn.functional.normalize(torch.from_numpy((x @ directions.T).astype(np.float32))))


def articles() -> Set:
    """The number of the article that each window is of."""
    return split(torch.tensor(windows()[1]))


def split(rows: Tensor) -> Set:
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return Set(rows[QUERIES + DOCUMENTS :], rows[:QUERIES], rows[QUERIES : QUERIES + DOCUMENTS])


@cache
def windows() -> tuple[list[list[str]], list[int]]:
    """Side by side within paragraphs, and their articles."""
    if not TEXT.exists():
        pytest.skip("the text of WikiText-2 is not here")
    found, article = [], []
    number = 0
    for line in (TEXT / "valid.txt").read_text().splitlines() + (TEXT / "test.txt").read_text().splitlines():
        words = line.lower().split()
        if words[:1] == ["="]:
            number += words[1] != "="
            continue
        parts = [words[at : at + WORDS] for at in range(0, max(1, len(words) - WORDS + 1), WORDS)] if len(words) > 1 else []
        found += parts
        article += [number] * len(parts)
    return found, article


def counted(texts: list[list[str]]) -> sparse.csr_matrix:
    vocabulary: dict[str, int] = {}
    pairs = [(i, vocabulary.setdefault(word, len(vocabulary))) for i, text in enumerate(texts) for word in text]
    rows, columns = zip(*pairs)
    return sparse.csr_matrix((np.ones(len(pairs)), (rows, columns)), (len(texts), len(vocabulary)))
