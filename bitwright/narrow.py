"""A nested artefact at one of the widths it serves: the codes of that width alone, packed as small as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bitwright import index
from bitwright.errors import BadRequest
from bitwright.export.base import Metas, Opened
from bitwright.grids.nested import Nested
from bitwright.terms.base import Json, Term, Terms
from bitwright.terms.coded import Coded
from bitwright.terms.turns import Turns


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
