"""Vespa: one or two planes of bits per document, Hamming distances first, then our scores from the same bits.

    score = start(q) + factor * sum over planes of w_p <asked(q), 2 unpack_bits(bits_p) - 1>

The only database here that scores a float query against our codes, factors included, so two bits per coordinate work too. A folder:
`schemas/codes.sd`, to go into an application, and `feed.jsonl`, to be fed by `vespa feed`. A query passes input.query(b) (signs of
plane 0), input.query(q) (asked(q), filled up with zeros to whole bytes), input.query(start), ranking=scored, and the YQL
`select id from codes where {targetHits: 100}nearestNeighbor(bits0, b)`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bitwright.embed.engines import contents, documents
from bitwright.embed.index import Index
from bitwright.errors import BadRequest
from bitwright.progress import Progress

SCHEMA = """schema codes {{
    document codes {{
        field id type {known} {{
            indexing: attribute | summary
        }}
        field factor type float {{
            indexing: attribute | summary
        }}
        field bits0 type tensor<int8>(x[{bytes}]) {{
            indexing: attribute | index
            attribute {{
                distance-metric: hamming
            }}
            index {{
                hnsw {{
                    max-links-per-node: 16
                    neighbors-to-explore-at-insert: 200
                }}
            }}
        }}{second}
    }}
    rank-profile scored {{
        inputs {{
            query(b) tensor<int8>(x[{bytes}])
            query(q) tensor<float>(x[{bits}])
            query(start) double: 0.0
        }}
        first-phase {{
            expression: closeness(field, bits0)
        }}
        second-phase {{
            rerank-count: 100
            expression: query(start) + attribute(factor) * ({score})
        }}
    }}
}}
"""
SECOND = """
        field bits1 type tensor<int8>(x[{bytes}]) {{
            indexing: attribute
        }}"""


def write(index: Index, out: Path, progress: Progress) -> str:
    """Raises BadRequest where codes are not one or two bits per coordinate whose points mirror each other."""
    weights = contents.planes(index.codec.book)
    if not weights:
        raise BadRequest(
            f"vespa takes one or two bits per coordinate and {index.codec.name} is no such code; "
            "build with --codec rotated or itq, --bits 1 or 2."
        )
    bits = contents.whole(index.codec)
    score = " + ".join(f"{w!r} * sum(query(q) * (2 * unpack_bits(attribute(bits{p})) - 1))" for p, w in enumerate(weights))
    second = SECOND.format(bytes=bits // 8) if len(weights) == 2 else ""
    schema = out / "schemas" / "codes.sd"
    schema.parent.mkdir(parents=True)
    schema.write_text(
        SCHEMA.format(known="long" if index.texts is None else "string", bytes=bits // 8, bits=bits, second=second, score=score)
    )
    documents.lines(out / "feed.jsonl", map(documents.compact, feed(index, weights, progress)))
    return "query(b) is contents.signs(codec, q)[i] as int8, query(q) contents.turned(codec, q)[i], query(start) its start."


def feed(index: Index, weights: list[float], progress: Progress) -> Iterator[Any]:
    for part in contents.parts(index, progress):
        rest, fields = part.coordinates, [{"id": i, "factor": f} for i, f in zip(part.names, part.factor.tolist())]
        for plane, weight in enumerate(weights):
            for field, row in zip(fields, contents.packed(rest)):
                field[f"bits{plane}"] = {"values": row.tobytes().hex().upper()}
            rest = rest - weight * torch.where(rest > 0, 1.0, -1.0)
        yield from ({"put": f"id:codes:codes::{field['id']}", "fields": field} for field in fields)
