"""USearch: a graph over bits (`b1`), Hamming distances. Kept as they are; factors have no place in it.

usearch.index.Index.restore(file).search(contents.signs(codec, q), k)        exact=True looks at every document
"""

from pathlib import Path

from bitwright.embed.engines import contents
from bitwright.embed.index import Index
from bitwright.progress import Progress


def write(index: Index, out: Path, progress: Progress) -> str:
    bits = contents.binary(index.codec, "usearch")
    library = contents.library("usearch.index")
    found = library.Index(ndim=bits, metric=library.MetricKind.Hamming, dtype=library.ScalarKind.B1)
    for part in contents.parts(index, progress):
        found.add(part.ids.numpy(), part.bits)
    found.save(str(out))
    return "usearch.index.Index.restore(FILE).search(contents.signs(codec, q), k): Hamming distances."
