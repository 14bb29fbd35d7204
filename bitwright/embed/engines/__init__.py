"""Which engine takes these codes, and what does it need to search them? One file per engine; what it stores is what we stored."""

ENGINES = {  # each is a function (index, where to write, progress) -> one sentence: how it is searched
    "faiss-flat": "bitwright.embed.engines.faiss:flat",
    "faiss-ivf": "bitwright.embed.engines.faiss:ivf",
    "faiss-hnsw": "bitwright.embed.engines.faiss:hnsw",
    "faiss-pq": "bitwright.embed.engines.faiss_pq:flat",
    "faiss-ivfpq": "bitwright.embed.engines.faiss_pq:ivf",
    "lance-pq": "bitwright.embed.engines.lance:product",
    "lance-bits": "bitwright.embed.engines.lance:bits",
    "usearch": "bitwright.embed.engines.usearch:write",
    "pgvector": "bitwright.embed.engines.pgvector:write",
    "parquet": "bitwright.embed.engines.parquet:write",
    "vespa": "bitwright.embed.engines.vespa:write",
    "milvus": "bitwright.embed.engines.milvus:write",
    "opensearch": "bitwright.embed.engines.opensearch:write",
    "elasticsearch": "bitwright.embed.engines.elasticsearch:write",
    "qdrant": "bitwright.embed.engines.qdrant:write",
    "mongodb": "bitwright.embed.engines.mongodb:write",
}
