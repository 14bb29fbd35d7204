"""An index: ids, a codec and its codes. Flat: every query looks at every allowed document, at the speed of memory.

Search is two steps: a scan with tables rounded to bytes keeps `oversample` times k documents, and those are scored again from
their codes with the query's float tables. Scores are on the scale of the vectors (cosine or inner product), larger is better.
Where the index is divided into cells (partition.py) a query looks into some of them. Documents are added and removed in place;
`save` writes one file whole, `Index.open` maps one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int64, UInt8
from torch import Tensor

from bitwright.embed.codec import Codec, Codes
from bitwright.embed.codefile import CodeFile, Stamp, stamp
from bitwright.embed.names import Names, written
from bitwright.embed.partition import Cells, bits
from bitwright.errors import BadRequest
from bitwright.kernels.scanning import BLOCK, Blocked, scan, score
from bitwright.terms.base import Json

Ids = Int64[Tensor, "_"] | Sequence[str]
SAMPLE = 1 << 16
Allowed = Int64[Tensor, "some"] | Bool[Tensor, "n"] | UInt8[Tensor, "bytes"]


class Hits(NamedTuple):
    """Best first. Where a filter leaves fewer than k documents: id -1, score -inf. `visited` documents per query."""

    ids: Int64[Tensor, "q k"]
    scores: Float32[Tensor, "q k"]
    visited: int
    bytes_read: int


@dataclass(eq=False)
class Index:
    codec: Codec
    codes: Blocked
    factor: Float16[Tensor, "n"] | None = None
    ids: Int64[Tensor, "n"] | None = None  # None: 0, 1, 2, ...
    about: Mapping[str, Json] | None = None
    texts: Names | None = None  # where documents are known by text, row by row
    cells: Cells | None = None  # None: every query looks at every document
    read: tuple[Path, Stamp] | None = None  # the file that this is

    @classmethod
    def empty(cls, codec: Codec) -> "Index":
        codes = codec.encode(torch.empty(0, codec.dim))
        return cls(codec, Blocked.of(codes.nibbles), codes.factor)

    @classmethod
    def build(cls, codec: Codec, x: Float[Tensor, "n inp"], ids: Ids | None = None) -> "Index":
        index = cls.empty(codec)
        index.add(x, ids)
        return index

    def __len__(self) -> int:
        return self.codes.count

    @property
    def bytes(self) -> int:
        """Of codes, factors and ids."""
        texts = () if self.texts is None else (self.texts.text, self.texts.ends)
        return sum(t.numel() * t.element_size() for t in (self.codes.data, self.factor, self.ids, *texts) if t is not None)

    def add(self, x: Float[Tensor, "n inp"] | Codes, ids: Ids | None = None, space: str | None = None) -> None:
        """Vectors, or codes of this codec's space (`space` is theirs). Without ids they go on from the largest. Ids may be text,
        of all documents or of none; numbers are then given as without ids.
        Raises BadRequest for ids that are there already, and for codes of another space that is not listed as compatible."""
        self.admit(space or self.codec.space_id)
        fresh = x if isinstance(x, Codes) else self.codec.encode(x)
        if not len(fresh):
            return
        texts, ids = self.named(ids, len(fresh))
        if ids is not None or self.ids is not None:
            start = int(self.names.max()) + 1 if len(self) else 0
            ids = torch.arange(start, start + len(fresh)) if ids is None else ids
            ids = self.joined(ids, len(fresh))
        self.codes, self.ids, self.texts = self.codes.and_also(fresh.nibbles), ids, texts
        if self.factor is not None and fresh.factor is not None:
            self.factor = torch.cat([self.factor, fresh.factor])
        if self.cells is not None:
            self.arrange(torch.cat([self.cells.numbers(), self.cells.nearest(self.codec.near(fresh))]))

    def named(self, ids: Ids | None, count: int) -> tuple[Names | None, Int64[Tensor, "_"] | None]:
        """Text of all documents, or numbers of the new ones."""
        if self.texts is None and (ids is None or isinstance(ids, Tensor)):
            return None, ids
        if self.texts is None and len(self):
            raise BadRequest("This index knows its documents by number; give whole numbers as ids, or build it again with text.")
        if ids is None:
            raise BadRequest("This index knows its documents by text; give an id for each vector.")
        new = [str(i) for i in (ids.tolist() if isinstance(ids, Tensor) else ids)]
        if len(new) != count:
            raise BadRequest(f"There are {len(new)} ids for {count} vectors; give one each.")
        return (self.texts or Names.of(())).and_also(new), None

    def ids_of(self, texts: Sequence[str]) -> Int64[Tensor, "c"]:
        """Numbers of documents that are known by text, or written as text. Raises BadRequest for one that is not there."""
        known = None if self.texts is None else self.texts.rows
        missing = [text for text in texts if (not written(text) if known is None else text not in known)]
        if missing:
            raise BadRequest(f"The id {missing[0]} is not in the index; nothing was done.")
        return torch.tensor([int(t) for t in texts]) if known is None else self.names[torch.tensor([known[t] for t in texts])]

    def texts_of(self, ids: Int64[Tensor, "c"]) -> list[str]:
        if self.texts is None:
            return [str(i) for i in ids.tolist()]
        order = self.names.argsort()
        return self.texts[order[torch.searchsorted(self.names[order], ids)]]

    def admit(self, space: str) -> None:
        if space not in (self.codec.space_id, *self.compatible):
            raise BadRequest(
                f"These vectors are of space {space}, the index of {self.codec.space_id}; encode them with this index's codec."
            )

    def joined(self, ids: Int64[Tensor, "n"], count: int) -> Int64[Tensor, "all"]:
        if len(ids) != count:
            raise BadRequest(f"There are {len(ids)} ids for {count} vectors; give one each.")
        if (ids < 0).any():
            raise BadRequest(f"The id {int(ids.min())} is negative; ids are whole numbers from 0 on.")
        found, times = torch.cat([self.names, ids]).unique(return_counts=True)
        if (times > 1).any():
            raise BadRequest(f"The id {int(found[times > 1][0])} is there twice; remove the old one first or give another.")
        return torch.cat([self.names, ids])

    @property
    def names(self) -> Int64[Tensor, "n"]:
        return torch.arange(len(self)) if self.ids is None else self.ids

    @property
    def compatible(self) -> Sequence[str]:
        return tuple((self.about or {}).get("compatible", ()))  # type: ignore[arg-type]

    def remove(self, ids: Int64[Tensor, "some"]) -> None:
        """Raises BadRequest, and removes nothing, where one of them is not there."""
        names = self.names
        missing = ~torch.isin(ids, names)
        if missing.any():
            raise BadRequest(f"The id {int(ids[missing][0])} is not in the index; nothing was removed.")
        kept = (~torch.isin(names, ids)).nonzero()[:, 0]
        numbers = None if self.cells is None else self.cells.numbers()[kept]
        self.take(kept)
        if self.cells is not None and numbers is not None:
            self.cells = self.cells.holding(numbers)

    def take(self, rows: Int64[Tensor, "c"]) -> None:
        """Only these rows, in this order."""
        self.ids, self.codes = self.names[rows], Blocked.of(self.codes.nibbles(rows))
        self.factor = None if self.factor is None else self.factor[rows]
        self.texts = None if self.texts is None else Names.of(self.texts[rows])

    def divide(self, cells: int, probes: int, seed: int = 0) -> None:
        """Into cells of documents that lie near each other, `probes` of which a query looks into. Raises BadRequest for
        numbers out of reach."""
        if not 1 <= probes <= cells <= len(self):
            raise BadRequest(f"{cells} cells, {probes} of them probed, do not divide {len(self)} documents; choose fewer.")
        some = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
        self.cells = Cells.among(self.codec.near(self.codes_of(some)), cells, probes, seed)
        parts = torch.arange(len(self)).split(SAMPLE)
        self.arrange(torch.cat([self.cells.nearest(self.codec.near(self.codes_of(rows))) for rows in parts]))

    def arrange(self, numbers: Int64[Tensor, "n"]) -> None:
        """Cell after cell, in each the order of before."""
        self.take(numbers.argsort(stable=True))
        self.cells = None if self.cells is None else self.cells.holding(numbers)

    def codes_of(self, rows: Int64[Tensor, "c"]) -> Codes:
        factor = None if self.factor is None else self.factor[rows]
        return Codes(self.codes.nibbles(rows)[:, : len(self.codec.book.starts)], factor)

    def search(
        self,
        q: Float[Tensor, "q inp"] | Codes,
        k: int = 10,
        oversample: float = 2.0,
        allowed: Allowed | None = None,
        by: Codec | None = None,
        probes: int | None = None,
    ) -> Hits:
        """The k documents of the largest scores. `q`: vectors, or codes like those of documents (symmetric distances).
        `allowed`: ids, a mask over rows, or a bitmap of rows (bit i % 8 of byte i // 8). `by`: the codec of the queries where
        it is not that of the index; its leading coordinates meet the codes. `probes`: cells looked into (None: as many as the
        index was divided for). Raises BadRequest where k is no number of documents of this index, and for queries of another
        space that is not listed as compatible."""
        if not len(self):
            raise BadRequest("The index is empty; add vectors first.")
        if not 1 <= k <= len(self):
            raise BadRequest(f"The index holds {len(self)} documents and k is {k}; choose k from 1 to {len(self)}.")
        if probes is not None and probes < 1:
            raise BadRequest(f"{probes} cells hold no documents; look into 1 or more.")
        if oversample < 1:
            raise BadRequest(f"An oversample of {oversample} would keep fewer than k; choose 1 or more.")
        asking = by or self.codec
        self.admit(asking.space_id)
        y, start = asking.asked(q)
        y = y[:, : self.codec.book.dims]
        tables = self.codec.book.tables(y)
        bitmap = None if allowed is None else self.bitmap(allowed)
        wanted, each = min(len(self), int(np.ceil(k * oversample))), self.codes.data[0].numel()
        if self.cells is None:
            found, blocks = scan(self.codes, tables, wanted, self.factor, bitmap), len(self.codes.data)
            visited = len(self) if bitmap is None else bits(bitmap)
        else:
            many = min(probes or self.cells.probes, len(self.cells.centres))
            found, total, blocks = self.cells.scan(y, many, self.codes, tables, wanted, self.factor, bitmap)
            visited = total // max(1, len(q))
        scores = score(self.codes, tables, found.rows, self.factor)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = found.rows.gather(1, order)[:, :k]
        ids = torch.where(rows < 0, -1, rows if self.ids is None else self.ids[rows.clamp_min(0)])
        return Hits(ids, scores[:, :k] + start[:, None], visited, blocks * (each + (0 if self.factor is None else 2 * BLOCK)))

    def bitmap(self, allowed: Allowed) -> UInt8[Tensor, "bytes"]:
        if allowed.dtype == torch.uint8:
            if len(allowed) != -(-len(self) // 8):
                raise BadRequest(f"The bitmap has {len(allowed)} bytes; {len(self)} documents take {-(-len(self) // 8)}.")
            return allowed
        if allowed.dtype == torch.int64:
            allowed = torch.isin(self.names, allowed)
        if len(allowed) != len(self):
            raise BadRequest(f"The mask has {len(allowed)} entries for {len(self)} documents; give one per document.")
        return torch.from_numpy(np.packbits(allowed.numpy(), bitorder="little"))

    def save(self, path: str | Path) -> None:
        """Raises BadRequest where the file was changed by another process since this index was read from it."""
        place = Path(path).absolute()
        since = self.read[1] if self.read is not None and self.read[0] == place else None
        file = CodeFile(self.codec, self.codes, self.factor, self.ids, self.texts, self.cells, self.about or {})
        self.read = place, file.save(place, since)

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        place = Path(path).absolute()
        seen = stamp(place)
        file = CodeFile.open(place)
        return cls(file.codec, file.codes, file.factor, file.ids, file.about, file.names, file.cells, (place, seen))
