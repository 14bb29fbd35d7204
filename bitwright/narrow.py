"""A nested artefact at one of the widths it serves: the codes of that width alone, packed as small as they are."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from bitwright import index
from bitwright.checkpoint import locate
from bitwright.errors import BadRequest
from bitwright.export.base import Format, Metas, Opened, open_compressed
from bitwright.export.native import open_sized
from bitwright.grids.nested import Nested
from bitwright.progress import Progress
from bitwright.terms.base import Json, Term, Terms, stored_bits
from bitwright.terms.coded import Coded
from bitwright.terms.turns import Turns


def open_as(root: Path, size: int | str | None = None, bits: int | None = None, form: Format | None = None) -> Opened:
    """A compressed directory: of a stack what fits into `size`, of nested codes the width `bits`. Raises BadRequest where it cannot
    be had so."""
    opened = open_compressed(root, form) if size is None else open_sized(root, size)
    return opened if bits is None else narrow(opened, bits)


def load(
    directory: Path, size: str | None, bits: int | None, out: Path | None, to: str, overwrite: bool, progress: Progress
) -> str:
    """Load a model at a size or a width, write it where asked, and say what it was."""
    from bitwright.convert import convert
    from bitwright.loading import assembled

    if size is None and bits is None:
        raise BadRequest("A size or a width is missing; give --size 9MB for a stack, or --bits 4 for nested codes.")
    root, begun = locate(str(directory)), time.perf_counter()
    opened = open_as(root, size, bits)
    assembled(root, opened)
    seconds = time.perf_counter() - begun
    if out is not None:
        convert(root, to, out, overwrite, progress, size, bits)
    metas = opened.model.metas
    stored = [stored_bits(tuple(found)) for found in metas.values()]
    weights = sum(found[0]["shape"][0] * found[0]["shape"][1] for found in metas.values())
    kept = sum(dtype.itemsize * prod(shape) for shape, dtype in opened.model.kept.values())
    told = (
        f"Loaded {sum(stored) // 8 + kept:,} bytes in {seconds:.2f} s: {sum(stored) / weights:.3f} bits per weight of {len(metas)} "
    )
    told += f"matrices, {min(map(len, metas.values()))} to {max(map(len, metas.values()))} terms each."
    return told + (f"\nWritten and read back: {out}" if out else "")


def narrow(opened: Opened, bits: int) -> Opened:
    """The model at `bits` bits per code, matrix by matrix as it is asked for; matrices that are not nested stay as they are.
    Raises BadRequest with the widths that can be had."""
    served = {name: widths(metas) for name, metas in opened.model.metas.items()}
    nested = [found for found in served.values() if found]
    common = set(nested[0]).intersection(*nested[1:]) if nested else set()
    if bits not in common:
        told = f"it serves {', '.join(map(str, sorted(common, reverse=True)))}" if common else "it holds one width only"
        raise BadRequest(f"This model cannot be had at {bits} bits: {told}; choose one of these, or leave out the width.")

    def terms(name: str) -> Terms:
        return lowered(opened.terms(name), bits) if served[name] else opened.terms(name)

    metas = {name: foretold(found, bits) if served[name] else found for name, found in opened.model.metas.items()}
    return replace(opened, model=replace(opened.model, metas=metas), terms=terms, document=unmeasured(opened.document, bits))


def unmeasured(document: Mapping[str, Json], bits: int) -> Mapping[str, Json]:
    """The document without what was measured at full width."""
    if "report" not in document:
        return document
    report = document["report"]
    rows = [{**row, "error": 0.0, "nearest": 0.0, "measure": "not measured"} for row in report["rows"]]
    notes = [*report["notes"], f"made of a nested model of several widths, at {bits} bits"]
    return {**document, "report": {**report, "rows": rows, "scores": None, "notes": notes}}


def widths(metas: Metas) -> tuple[int, ...]:
    """What the nested codes of a matrix serve, and its turns where it has some; () where it has no nested codes."""
    grids = [index.from_dict(meta["grid"]) for meta in metas if meta["kind"] == "coded"]
    serves = next((grid.serves for grid in grids if isinstance(grid, Nested)), ())
    turned = next((meta["widths"] for meta in metas if meta["kind"] == "turns"), serves)
    return tuple(bits for bits in serves if bits == serves[0] or bits in turned)


def foretold(metas: Metas, bits: int) -> Sequence[Mapping[str, Json]]:
    """The metas of `lowered`, from the metas alone."""
    found: list[Mapping[str, Any]] = []
    for meta in metas:
        if meta["kind"] == "coded":
            grid = index.from_dict(meta["grid"])
            found.append(meta if not isinstance(grid, Nested) else {**meta, "grid": index.to_dict(grid.at(bits))})
        elif meta["kind"] != "turns":
            found.append(meta)
    return found


def lowered(terms: Terms, bits: int) -> Terms:
    """The terms of a matrix at a width: its nested codes rounded a second time, as the stored turns say where there are some."""
    turns = next((term for term in terms if isinstance(term, Turns)), None)
    return tuple(low(term, turns, bits) for term in terms if term is not turns)


def low(term: Term, turns: Turns | None, bits: int) -> Term:
    if not isinstance(term, Coded) or not isinstance(term.grid, Nested):
        return term
    grid, shape = term.grid, (term.shape[0], term.codes.shape[1])
    plane = None if turns is None or bits == grid.bits else turns.planes[bits]
    if plane is not None and term.columns is not None:
        plane = plane[:, term.columns.long()]
    split = term.layout.split
    codes = grid.lowered(split(term.codes), term.params, bits, None if plane is None else split(plane))
    return Coded(
        term.shape, grid.at(bits), term.layout, term.layout.join(codes, shape), grid.params(term.params, bits), term.columns
    )
