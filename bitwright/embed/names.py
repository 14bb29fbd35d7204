"""Ids that are text, row by row: one run of UTF-8 bytes and where each of them ends, so that a file of millions is mapped and
not parsed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from bitwright.errors import BadRequest


@dataclass(frozen=True, eq=False)
class Names:
    text: UInt8[Tensor, "bytes"]
    ends: Int64[Tensor, "n"]
    known: dict[str, int] | None = None  # the row of each, where somebody has needed it before

    def __post_init__(self) -> None:
        if len(self.text) != (int(self.ends[-1]) if len(self.ends) else 0):
            raise ValueError(f"{len(self.text)} bytes of names end elsewhere")

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        parts = [name.encode() for name in names]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy()), torch.from_numpy(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, rows: Int64[Tensor, "c"]) -> list[str]:
        ends, starts = self.ends[rows].tolist(), torch.where(rows > 0, self.ends[rows - 1], 0).tolist()
        text = self.text.numpy()
        return [text[a:b].tobytes().decode(errors="replace") for a, b in zip(starts, ends)]

    @cached_property
    def rows(self) -> dict[str, int]:
        return self.known or {name: row for row, name in enumerate(self[torch.arange(len(self))])}

    def and_also(self, names: Sequence[str]) -> "Names":
        """Raises BadRequest for a name that is there already, or twice."""
        rows, new = dict(self.rows), Names.of(names)
        for name in names:
            if name in rows:
                raise BadRequest(f"The id {name} is there twice; remove the old one first or give another.")
            rows[name] = len(rows)
        return Names(torch.cat([self.text, new.text]), torch.cat([self.ends, new.ends + len(self.text)]), rows)


def written(text: str) -> bool:
    """Whether a text is a whole number, written as numbers are."""
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 19
