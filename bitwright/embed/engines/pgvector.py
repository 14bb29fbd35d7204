"""PostgreSQL: a column of bits, and our scores of the nearest of them in SQL; a graph over them where pgvector is there.

    psql -d DATABASE -f FILE
    SELECT * FROM codes_search(BITS, QUERY, k, candidates)       BITS: 'x' and the signs in hex; QUERY: asked(q) as real[]

Candidates are those of fewest differing bits, their score is factor w <asked(q), 2 b - 1>: ours but for start(q). Without pgvector
the first step is exact and looks at all rows; with it, it is an HNSW index, whose hnsw.ef_search must be at least `candidates`.
"""

from pathlib import Path

from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.progress import Progress

BEFORE = """-- {name}, {count} documents. Run with psql -f; the part for the extension vector is left out where it is not there.
\\set ON_ERROR_STOP on
BEGIN;
CREATE TABLE codes (id {known} PRIMARY KEY, bits bit({bits}) NOT NULL, factor real NOT NULL);
COPY codes (id, bits, factor) FROM stdin;
"""
AFTER = """\\.

-- factor * w * (query, +1 or -1 by the bits); a query shorter than the bits leaves the last of them out
CREATE FUNCTION codes_score(bits bit, factor real, query real[]) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT factor::double precision * {weight!r} * sum(CASE get_bit(bits, i::int - 1) WHEN 1 THEN q ELSE -q END)
    FROM unnest(query::double precision[]) WITH ORDINALITY AS one (q, i)
$$;

-- the rows of fewest differing bits
CREATE FUNCTION codes_near(query_bits bit, candidates int) RETURNS SETOF codes
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM codes ORDER BY bit_count(bits # query_bits), id LIMIT candidates
$$;

SELECT count(*) > 0 AS has_vector FROM pg_available_extensions WHERE name = 'vector' \\gset
\\if :has_vector
CREATE EXTENSION IF NOT EXISTS vector;
CREATE INDEX codes_bits ON codes USING hnsw (bits bit_hamming_ops);
CREATE OR REPLACE FUNCTION codes_near(query_bits bit, candidates int) RETURNS SETOF codes
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM codes ORDER BY bits <~> query_bits LIMIT candidates
$$;
\\endif

-- the best k of them by score
CREATE FUNCTION codes_search(query_bits bit, query real[], k int, candidates int)
RETURNS TABLE (id {known}, score double precision)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT near.id, codes_score(near.bits, near.factor, query) AS score
    FROM codes_near(query_bits, candidates) AS near
    ORDER BY score DESC, near.id LIMIT k
$$;
COMMIT;
ANALYZE codes;
"""


def write(index: Index, out: Path, progress: Progress) -> str:
    bits = contents.binary(index.codec, "pgvector")
    with out.open("w") as file:
        known = "bigint" if index.texts is None else "text"
        file.write(BEFORE.format(name=index.codec.name, count=len(index), bits=bits, known=known))
        for part in contents.parts(index, progress):
            rows = zip(part.names, part.bits, part.factor.tolist())
            file.writelines(f"{escaped(str(i))}\tx{row.tobytes().hex()}\t{f!r}\n" for i, row, f in rows)
        file.write(AFTER.format(known=known, weight=contents.planes(index.codec.book)[0]))
    return "SELECT * FROM codes_search('x' || hex of contents.signs(codec, q)[i], contents.turned(codec, q)[i], k, candidates)."


def escaped(text: str) -> str:
    """As COPY reads it."""
    for sign, code in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(sign, code)
    return text
