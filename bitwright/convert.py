"""convert(): a compressed model from one format to another, code for code."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright import index
from bitwright.errors import BadRequest, writing
from bitwright.export.base import Format, Opened, export
from bitwright.export.native import Native
from bitwright.export.resumable import make_room
from bitwright.ledger import ledger
from bitwright.narrow import open_as
from bitwright.progress import Progress, silent


def convert(
    model: str | Path,
    to: str,
    out: str | Path,
    overwrite: bool = False,
    progress: Progress = silent,
    size: int | str | None = None,
    bits: int | None = None,
) -> list[str]:
    """Write a compressed model in another format and read it back: of a stack what fits into `size`, of nested codes the width
    `bits`. Returns what a user of the new one should know.

    Raises BadRequest where `model` is not compressed, or `to` cannot hold it exactly; then nothing is written.
    """
    root, target = Path(model), Path(out)
    if target.resolve() == root.resolve() or target.resolve() in root.resolve().parents:
        raise BadRequest(f"{out} holds the model that is converted; choose another directory.")
    form: Format = index.form(to)
    opened = open_as(root, size, bits)
    if why := form.refusal(opened.model):
        raise BadRequest(why)
    make_room(target, False, overwrite)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    remarks = export(opened, form, target, progress)
    if opened.document:
        with writing(target):
            (target / "bitwright.json").write_text(json.dumps(recounted(opened, form), indent=1))
    ledger(target)
    return remarks


def recounted(source: Opened, form: Format) -> Mapping[str, Any]:
    """The document of the source with the bits of another format; of a part of a stack with that part's errors, and no scores."""
    from bitwright.report import Report

    report: dict[str, Any] = source.document["report"]

    def bits(name: str) -> int:
        return form.bits(name, source.model.metas[name], source.model.inputs.get(name))

    def part(row: dict[str, Any]) -> dict[str, Any]:
        count, errors = len(source.model.metas[row["name"]]), row.get("prefixes")
        told = {"error": errors[count - 1], "prefixes": errors[:count], "terms": row["terms"][:count]} if errors else {}
        return {**row, "bits": bits(row["name"])} | told

    rows = [part(row) for row in report["rows"]]
    if any(len(row["terms"]) < len(before["terms"]) for row, before in zip(rows, report["rows"])):
        report = {**report, "scores": None}
    kept = sum(form.kept_bytes(name, kept) for name, kept in source.model.kept.items())
    return {**source.document, "report": Report.from_dict({**report, "rows": rows, "kept": kept}).to_dict()}


def deliver(source: Path, form: Format, out: Path, document: dict[str, Any], progress: Progress) -> list[str]:
    """Turn a finished native directory into one of another format, read it back, and drop it."""
    remarks = export(Native().open(source), form, out, progress)
    document["report"]["notes"] = [*document["report"]["notes"], *remarks]
    with writing(out):
        (out / "bitwright.json").write_text(json.dumps(document, indent=1))
    ledger(out)
    shutil.rmtree(source)
    return remarks
