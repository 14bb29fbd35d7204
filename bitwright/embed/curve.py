"""What codes keep of a float search, measured while they are made: how much of the exact top 10 is found, by oversample.

    recall_at_10      in the 10 best of `Index.search`, whose candidates are scored again from their codes
    reranked_at_10    among those 10 times oversample candidates: what is found where floats rank them again

Some of the vectors ask and others are searched, so no document is its own answer. Where there are enough, those that ask are none
of those that the codec was fitted on. All of the sample is looked at, without cells; a larger index has more near misses and
shares less.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.judging import exact
from bitwright.embed.sources import Source

QUERIES, DOCUMENTS, K = 200, 20_000, 10
OVERSAMPLES = (1, 2, 4, 8)


def curve(codec: Codec, x: Float[Tensor, "n inp"], q: Float[Tensor, "q inp"]) -> dict[str, dict[str, float]]:
    """Shares of the top 10 of the floats (of all documents, where there are fewer), from 0 to 1."""
    k = min(K, len(x))
    index, best = Index.build(codec, x), exact(x, q, k, codec.metric)
    candidates = index.search(q, min(max(OVERSAMPLES) * k, len(x))).ids
    return {
        "recall_at_10": {str(times): found(index.search(q, k, float(times)).ids, best) for times in OVERSAMPLES},
        "reranked_at_10": {str(times): found(candidates[:, : times * k], best) for times in OVERSAMPLES},
    }


def found(ids: Int64[Tensor, "q c"], best: Int64[Tensor, "q k"]) -> float:
    return round(float((best[:, :, None] == ids[:, None, :]).any(2).double().mean()), 4)


def measured(codec: Codec, source: Source, fitted: int) -> dict[str, Any]:
    """Plain JSON. `fitted`: the codec was fitted on so many vectors, the first of the source's order; the last of it ask."""
    rows = source.order()
    asking = min(QUERIES, len(rows) // 4)
    q, x = rows[-asking:], np.sort(rows[:-asking][-DOCUMENTS:])
    held_out = len(rows) - asking >= fitted
    return {**curve(codec, source[x], source[q]), "queries": len(q), "documents": len(x), "held_out": held_out}


def said(told: Mapping[str, Any]) -> str:
    recall, again = told["recall_at_10"], told["reranked_at_10"]
    return (
        f"top 10 shared with floats: {recall['1']:.2f} ({recall['4']:.2f} with oversample 4, {again['4']:.2f} where floats rank "
        f"those again); {told['queries']} queries among {told['documents']:,} documents"
        + ("" if told["held_out"] else ", asked by vectors that the codec was fitted on")
    )
