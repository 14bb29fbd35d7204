"""FAISS, from runs: its fast scan of product codes with our points as its centroids, after our map; inner products.

    faiss.read_index(file).search(q, k)         score = <asked(q), y>, tables rounded to bytes as FAISS does

Raw float queries: the map A goes before the index (IndexPreTransform). Centre and factor do not: <q, centre> is the same for all
documents, and factors have no place in a product code, so fetch four times as many and score again where the codec has them.
Documents are added here and not there: FAISS would turn them without subtracting the centre.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.embed.views import Linear
from bitwright.errors import BadRequest
from bitwright.progress import Progress

SAID = "faiss.read_index(FILE).search(q, k) with raw queries: inner products but for <q, centre>"
LOSES = "; factors are left out: fetch four times as many and score them again with Index.search"


def flat(index: Index, out: Path, progress: Progress) -> str:
    count, width = contents.runs(index.codec, "faiss-pq")
    faiss = contents.library("faiss")
    found = faiss.IndexPQFastScan(count * width, count, 4, faiss.METRIC_INNER_PRODUCT)
    return filled(faiss, found, index, out, progress)


def ivf(index: Index, out: Path, progress: Progress) -> str:
    """As many cells as the square root of the documents, an eighth of them looked at; codes are not residuals, so they are ours."""
    count, width = contents.runs(index.codec, "faiss-ivfpq")
    faiss = contents.library("faiss")
    cells, dims = contents.lists(index), count * width
    means = faiss.Kmeans(dims, cells, niter=10, seed=0, min_points_per_centroid=1)
    means.train(contents.sample(index, 64 * cells).coordinates.numpy())
    coarse = faiss.IndexFlatIP(dims)
    coarse.add(means.centroids)
    found = faiss.IndexIVFPQFastScan(coarse, dims, cells, count, 4, faiss.METRIC_INNER_PRODUCT)
    found.by_residual, found.nprobe = False, max(1, cells // 8)
    return filled(faiss, found, index, out, progress)


def filled(faiss: Any, found: Any, index: Index, out: Path, progress: Progress) -> str:
    codec = index.codec
    if not isinstance(codec.view, Linear):
        raise BadRequest(f"faiss maps queries by a matrix before it and {codec.name} sees them otherwise; use lance-pq or parquet.")
    faiss.copy_array_to_vector(codec.book.points.numpy().ravel(), found.pq.centroids)
    found.is_trained = True
    into = found if index.ids is None else faiss.IndexIDMap(found)
    for part in contents.parts(index, progress):  # decoded codes: their nearest points are themselves
        if index.ids is None:
            into.add(part.coordinates.numpy())
        else:
            into.add_with_ids(part.coordinates.numpy(), part.ids.numpy())
    turn = faiss.LinearTransform(codec.dim, codec.book.dims, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(codec.view.matrix.numpy()).ravel(), turn.A)
    turn.is_trained = True
    whole = faiss.IndexPreTransform(turn, into)
    faiss.write_index(whole, str(out))
    return SAID + (LOSES if index.factor is not None else "") + "."
