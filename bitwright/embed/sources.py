"""Vectors from where people have them: .npy (mapped), .safetensors (its only matrix), .parquet (a column of lists), or text.

Text is .jsonl with `text` and perhaps `title` and `_id` (as BEIR has it), or .txt with one document per line; it takes a local
sentence-transformers model. Ids are whole numbers or text, or the row where there are none.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitwright.embed.names import written
from bitwright.errors import WRONG, BadRequest, in_a_line
from bitwright.progress import Progress, silent

TEXT = (".jsonl", ".txt")


@dataclass(frozen=True, eq=False)
class Source:
    """`rows` is anything that slices into [n, inp] numbers; it may lie on disk."""

    rows: Any
    ids: Int64[Tensor, "n"] | list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | Int64[np.ndarray, "n"]) -> Float[Tensor, "n inp"]:
        return torch.from_numpy(np.array(self.rows[part], dtype=np.float32))

    def parts(self, size: int) -> Iterator[tuple[Float[Tensor, "n inp"], Int64[Tensor, "n"] | list[str] | None]]:
        for at in range(0, len(self), size):
            part = slice(at, at + size)
            yield self[part], None if self.ids is None else self.ids[part]

    def order(self) -> Int64[np.ndarray, "n"]:
        """All rows, as samples take them."""
        return np.random.default_rng(0).permutation(len(self))

    def sample(self, count: int) -> Float[Tensor, "some inp"]:
        """Rows from all over, in order. Those that no codec takes are left for who goes through all rows, and can name them."""
        rows = self[np.sort(self.order()[:count])]
        return rows[rows.isfinite().all(1) & rows.any(1)]


def read(path: Path, model: str | None = None, progress: Progress = silent) -> Source:
    """Raises BadRequest for what is not there, not a matrix of numbers, or text without a model."""
    if not path.is_file():
        raise BadRequest(f"There is no file {path}; give a file of vectors (.npy, .safetensors, .parquet) or text (.jsonl, .txt).")
    readers = {".npy": numpy, ".safetensors": tensors, ".parquet": parquet}
    if path.suffix in TEXT:
        return text(path, model, progress)
    if path.suffix not in readers:
        raise BadRequest(f"{path.name} is of no kind that can be read; give one of {', '.join((*readers, *TEXT))}.")
    try:
        found = readers[path.suffix](path)
    except (*WRONG, SafetensorError, OSError) as error:
        raise BadRequest(f"{path} cannot be read ({in_a_line(error)}); write it again.") from None
    if len(found.rows.shape) != 2 or found.rows.dtype.kind not in "fiu" or not len(found):
        raise BadRequest(f"{path} holds {found.rows.dtype} of shape {tuple(found.rows.shape)}; give a matrix, a vector per row.")
    return found


def numpy(path: Path) -> Source:
    return Source(np.load(path, mmap_mode="r"))


def tensors(path: Path) -> Source:
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    matrices = [tensor for tensor in found.values() if tensor.dim() == 2]
    if len(matrices) != 1:
        raise ValueError(f"it holds {len(matrices)} matrices, not one")
    return Source(matrices[0].float().numpy(), found.get("ids"))


def parquet(path: Path) -> Source:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise BadRequest("Reading .parquet takes pyarrow; install it, or give .npy or .safetensors.") from None
    table = pq.read_table(path)
    column = next((c for c in table.columns if "list" in str(c.type)), None)
    if column is None:
        raise ValueError("no column holds lists")
    rows = np.stack(column.to_numpy())
    return Source(rows, named(table["id"].to_pylist()) if "id" in table.column_names else None)


def text(path: Path, model: str | None, progress: Progress) -> Source:
    if model is None:
        raise BadRequest(f"{path.name} is text and needs a model; name a local sentence-transformers model with --model.")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise BadRequest("Text takes sentence-transformers; install it (pip install 'bitwright[embed]') or give vectors.") from None
    if not Path(model).is_dir():
        raise BadRequest(f"There is no folder {model}; give the folder of a sentence-transformers model.")
    texts, names = documents(path)
    encoder, rows = SentenceTransformer(model, device="cpu"), []
    for at in range(0, len(texts), 64):
        rows.append(encoder.encode(texts[at : at + 64], show_progress_bar=False))
        progress("embedding", min(at + 64, len(texts)), len(texts))
    return Source(np.concatenate(rows), names)


def documents(path: Path) -> tuple[list[str], Int64[Tensor, "n"] | list[str] | None]:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise BadRequest(f"{path} holds no text; give a document per line.")
    if path.suffix == ".txt":
        return lines, None
    try:
        rows = [json.loads(line) for line in lines]
        texts = [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
        names = [row.get("_id") for row in rows]
    except (*WRONG,) as error:
        raise BadRequest(f"{path} is no .jsonl of documents ({in_a_line(error)}); each line takes at least a text.") from None
    if None in names and set(names) != {None}:
        raise BadRequest(f"Document {names.index(None) + 1} of {path} has no _id and others do; give one to all or to none.")
    return texts, None if None in names else named(names)


def named(names: list[Any]) -> Int64[Tensor, "n"] | list[str]:
    """Whole numbers where all of them are; else text."""
    texts = [str(name) for name in names]
    return torch.tensor([int(text) for text in texts]) if all(map(written, texts)) else texts
