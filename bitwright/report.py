"""Report: what was asked, what it costs in stored bits, what it changed, where the time went. Rows per site, scores for the whole.

The report is part of the result: it is written into `bitwright.json` beside the weights, printed as a table, and drawn as a page.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bitwright.errors import in_place_of
from bitwright.terms.base import Json


@dataclass(frozen=True)
class Row:
    """One compressed matrix.

    `bits`: stored bits of all its terms. `error`: what is lost, as a share of the matrix's own output energy,
    tr(E H E^T) / tr(W H W^T), or of its squared weights where no data was used (`measure` says which); `nearest`: the same for
    nearest rounding on the same grid. `seconds` of solving. `prefixes`: of a
    stack, the errors of its first term, its first two, ... all.
    """

    name: str
    block: int | None
    shape: tuple[int, int]
    bits: int
    error: float
    nearest: float
    measure: str
    seconds: float
    terms: tuple[str, ...]
    notes: tuple[str, ...] = ()
    prefixes: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Row":
        kept: dict[str, Any] = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        as_tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
        return cls(**as_tuples)

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bpw(self) -> float:
        return self.bits / self.weights


@dataclass(frozen=True)
class Report:
    """`asked`: model, recipe and data in words; `kept`: bytes of tensors stored as they were; `original`: bytes before.

    `scores`: what `evaluate` found, as JSON; None until it has been run.
    """

    asked: dict[str, Json]
    rows: tuple[Row, ...]
    kept: int
    original: int
    weights: int
    seconds: float
    peak: int
    provenance: dict[str, Json]
    scores: dict[str, Json] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Of all tensors written."""
        return sum(row.bits for row in self.rows) // 8 + self.kept

    @property
    def bpw_linears(self) -> float:
        """Stored bits per weight of the compressed matrices."""
        return sum(row.bits for row in self.rows) / sum(row.weights for row in self.rows)

    @property
    def bpw_everything(self) -> float:
        """Stored bits per weight of the whole model, embeddings and norms included."""
        return 8 * self.bytes / self.weights

    @property
    def fallbacks(self) -> tuple[str, ...]:
        return tuple(f"{row.name}: {note}" for row in self.rows for note in row.notes) + self.notes

    def with_scores(self, scores: dict[str, Json]) -> "Report":
        return replace(self, scores=scores)

    def to_dict(self) -> dict[str, Json]:
        totals = {n: getattr(self, n) for n in ("bytes", "bpw_linears", "bpw_everything")}
        return {**asdict(self), **totals}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Report":
        kept = {f.name: value[f.name] for f in fields(cls)}
        return cls(**{**kept, "rows": tuple(map(Row.from_dict, value["rows"])), "notes": tuple(value["notes"])})

    def write(self, directory: str | Path) -> None:
        """Into the `bitwright.json` of a compressed directory, in place of the report that is there."""
        path = Path(directory) / "bitwright.json"
        document = json.loads(path.read_text()) | {"report": self.to_dict()}
        with in_place_of(path) as partial:
            partial.write_text(json.dumps(document, indent=1))

    @classmethod
    def read(cls, directory: str | Path) -> "Report":
        """From the `bitwright.json` of a compressed directory."""
        return cls.from_dict(json.loads((Path(directory) / "bitwright.json").read_text())["report"])
