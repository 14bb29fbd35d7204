"""Peers of scan_cpu.py, in an environment of their own: built once, then timed whenever a line of JSON asks.

stdin {"what": name, "queries": 1 or 64, "threads": t}  ->  stdout {"seconds": s, "rows": [[...]]}
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

D, BATCH, WIDE, K, CLUSTERS = 256, 51_200, 1024, 10, 1000


def vectors(seed: int, count: int) -> np.ndarray:
    """Gaussian clusters; a process that asks for the same seed gets the same vectors."""
    centres = np.random.default_rng(2**31).standard_normal((CLUSTERS, D), np.float32) / 2
    draw = np.random.default_rng(seed)
    return centres[draw.integers(0, CLUSTERS, count)] + draw.standard_normal((count, D), np.float32)


def batches(n: int) -> Iterator[tuple[slice, np.ndarray]]:
    for seed, start in enumerate(range(0, n, BATCH)):
        here = slice(start, min(n, start + BATCH))
        yield here, vectors(seed, here.stop - here.start)


def wide(n: int) -> np.ndarray:
    """Codes of 1,024 bits, at random."""
    return np.random.default_rng(2**31 + 1).integers(0, 256, (n, WIDE // 8), np.uint8)


def main() -> None:
    import faiss
    from usearch.index import MetricKind, search

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    given = np.load(args.folder / "given.npz")
    asked, asked_wide = given["queries"], given["wide"]
    indices: dict[str, Any] = {"RaBitQfs": faiss.index_factory(D, "RaBitQfs", faiss.METRIC_INNER_PRODUCT)}
    indices["RaBitQfs"].train(vectors(0, BATCH))
    for bits in (1, 2, 4):
        points = given[f"points{bits}"]
        index = faiss.IndexPQFastScan(D, D * bits // 4, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.tile(points, (D * bits // 4, 1, 1)).ravel().astype(np.float32), index.pq.centroids)
        index.is_trained = True
        indices[f"PQ{D * bits // 4}x4fs"] = index
    narrow = np.empty((args.n, D // 8), np.uint8)
    for here, x in batches(args.n):
        narrow[here] = np.packbits(x > 0, axis=1)
        for index in indices.values():
            index.add(x)
    calls: dict[str, Callable[[int, int], np.ndarray]] = {
        name: lambda q, threads, index=index: index.search(asked[:q], K)[1] for name, index in indices.items()
    }
    for rows, queries in ((narrow, np.packbits(asked > 0, axis=1)), (wide(args.n), asked_wide)):
        index, size = faiss.IndexBinaryFlat(8 * rows.shape[1]), 8 * rows.shape[1]
        index.add(rows)
        calls[f"BinaryFlat {size}"] = lambda q, threads, index=index, queries=queries: index.search(queries[:q], K)[1]
        calls[f"usearch {size}"] = lambda q, threads, rows=rows, queries=queries: search(
            rows, queries[:q], K, MetricKind.Hamming, exact=True, threads=threads
        ).keys.reshape(q, -1)
    print(json.dumps({"faiss": faiss.__version__, "compiled": faiss.get_compile_options(), "peers": list(calls)}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        faiss.omp_set_num_threads(ask["threads"])
        begun = time.perf_counter()
        rows = calls[ask["what"]](ask["queries"], ask["threads"])
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "rows": np.asarray(rows).astype(int).tolist()}), flush=True)


if __name__ == "__main__":
    main()
