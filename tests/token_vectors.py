"""Token vectors of WikiText-2 for tests of late interaction: 64 numbers per word, windows as documents, pieces as queries.

Word vectors are the leading singular vectors of the positive pointwise mutual information of words within five places, times the
square root of the singular value (latent semantics, as one makes them without a model). A token is the vector of its word, centred
over the text and of length 1. A document is a window of words; a query is a piece of the text between two windows: no query is part
of a document, and none has one that is surely its own.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from wikitext import DATA

from bitwright.embed.chamfer import Sets

FILE = DATA / "wikitext2" / "test.txt"
needed = pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is not there")
DIM, REACH = 64, 5


@cache
def tokens() -> Tensor:
    """[words of the text, 64]."""
    text = FILE.read_text().lower().split()
    words, ids = np.unique([word for word in text if word != "<unk>"], return_inverse=True)
    size, pairs = len(words), sp.csr_matrix((len(words), len(words)))
    for gap in range(1, REACH + 1):
        pairs += sp.coo_matrix((np.full(len(ids) - gap, 1 / gap), (ids[:-gap], ids[gap:])), (size, size)).tocsr()
    pairs = (pairs + pairs.T).tocoo()
    often = np.asarray(pairs.sum(1))[:, 0]
    value = np.log(pairs.data * pairs.data.sum() / (often[pairs.row] * often[pairs.col]))
    ppmi = sp.csr_matrix((value.clip(0), (pairs.row, pairs.col)), (size, size))
    basis = np.linalg.qr(ppmi @ np.random.default_rng(0).standard_normal((size, 2 * DIM)))[0]
    for _ in range(3):
        basis = np.linalg.qr(ppmi @ (ppmi.T @ basis))[0]
    left, sizes, _ = np.linalg.svd((ppmi.T @ basis).T, full_matrices=False)
    vectors = torch.from_numpy((basis @ left[:, :DIM]) * np.sqrt(sizes[:DIM])).float()[torch.from_numpy(ids)]
    return torch.nn.functional.normalize(vectors - vectors.mean(0))


@dataclass(frozen=True)
class Corpus:
    documents: Sets
    queries: Sets


def corpus(documents: int = 2000, queries: int = 200, length: int = 64, asked: int = 16, seed: int = 0) -> Corpus:
    """Windows of `length` words with gaps of `asked` words between them; queries are some of the gaps."""
    every = tokens()
    step = length + asked
    most = len(every) // step
    windows = every[: most * step].view(most, step, DIM)[:documents]
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:queries]
    return Corpus(Sets.of(list(windows[:, :length])), Sets.of(list(windows[chosen, length:])))
