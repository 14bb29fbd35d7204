"""FAISS, from bits: its binary indexes, exact (flat) or with fewer looks (ivf, hnsw); Hamming distances, smaller is nearer.

    faiss.read_index_binary(file).search(contents.signs(codec, q), k)

The codes are the bytes that FAISS stores, so nothing is lost; it has no place for factors.
"""

from pathlib import Path
from typing import Any

from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.progress import Progress

SAID = "faiss.read_index_binary(FILE).search(contents.signs(codec, q), k): Hamming distances."
LINKS = 32


def flat(index: Index, out: Path, progress: Progress) -> str:
    faiss, bits = opened(index, "faiss-flat")
    return filled(faiss, faiss.IndexBinaryFlat(bits), index, out, progress)


def ivf(index: Index, out: Path, progress: Progress) -> str:
    """As many cells as the square root of the documents, an eighth of them looked at (`nprobe`)."""
    faiss, bits = opened(index, "faiss-ivf")
    cells = contents.lists(index)
    found = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, cells)
    found.nprobe = max(1, cells // 8)
    found.cp.min_points_per_centroid = 1
    found.train(contents.sample(index, 64 * cells).bits)
    return filled(faiss, found, index, out, progress)


def hnsw(index: Index, out: Path, progress: Progress) -> str:
    faiss, bits = opened(index, "faiss-hnsw")
    return filled(faiss, faiss.IndexBinaryHNSW(bits, LINKS), index, out, progress)


def opened(index: Index, name: str) -> tuple[Any, int]:
    bits = contents.binary(index.codec, name)
    return contents.library("faiss"), bits


def filled(faiss: Any, found: Any, index: Index, out: Path, progress: Progress) -> str:
    into = found if index.ids is None else faiss.IndexBinaryIDMap(found)
    for part in contents.parts(index, progress):
        if index.ids is None:
            into.add(part.bits)
        else:
            into.add_with_ids(part.bits, part.ids.numpy())
    faiss.write_index_binary(into, str(out))
    return SAID
