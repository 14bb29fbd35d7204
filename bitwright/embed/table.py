"""What `bitwright index evaluate` and `check` print, and the judgements that are read."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bitwright.embed.checking import Verdict
from bitwright.embed.judging import Judged
from bitwright.embed.sources import Source
from bitwright.errors import WRONG, BadRequest, in_a_line
from bitwright.evaluation.retrieval import Gains

COLOURS = {"good": "green", "look": "yellow", "fault": "red", "skipped": "dim"}


def numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadRequest(f"{text!r} is no list of numbers; write them like 0.5,1,2.") from None


def gains(path: Path, documents: Sequence[str], queries: Sequence[str]) -> Gains:
    """By row of the documents, for every query; both in the order of their ids. Raises BadRequest for what is no such table."""
    rows = [{name: i for i, name in enumerate(ids)} for ids in (queries, documents)]
    found: list[dict[int, float]] = [{} for _ in range(len(queries))]
    try:
        for line in path.read_text().splitlines():
            query, document, score = line.split("\t")[:3]
            if query in rows[0] and document in rows[1]:  # the first line names the columns
                found[rows[0][query]][rows[1][document]] = float(score)
    except (*WRONG, OSError) as error:
        raise BadRequest(
            f"{path} is no table of judgements ({in_a_line(error)}); a line is query, document and score, tab separated."
        ) from None
    if not any(found):
        raise BadRequest(f"No judgement of {path} is about these queries and documents; check their ids.")
    return found


def names(source: Source) -> list[str]:
    ids = range(len(source)) if source.ids is None else source.ids
    return [str(i) for i in (ids.tolist() if isinstance(ids, Tensor) else ids)]


def show(found: Judged, console: Console) -> None:
    """A line per codec, then the advice."""
    console.print(f"{found.documents:,} documents, {found.queries:,} queries, top {found.k}"
                  + ("" if found.float_ndcg is None else f"; nDCG of the floats {found.float_ndcg:.4f}"))  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("bits", "codec", "bytes", "overlap", *(() if found.float_ndcg is None else ("nDCG", "against float"))):
        table.add_column(name, justify="left" if name == "codec" else "right")
    for line in found.lines:
        cells = [f"{line.bits:g}", line.name, f"{line.bytes:.0f}", f"{line.overlap:.3f}"]
        if line.ndcg is not None and line.against is not None:
            a = line.against
            cells += [f"{line.ndcg:.4f}", f"{a.value:+.4f} [{a.low:+.4f}, {a.high:+.4f}]"]
        table.add_row(*cells)
    console.print(table)
    for sentence in found.advice():
        console.print(sentence)


def verdicts(found: list[Verdict], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test")
    table.add_column("verdict")
    table.add_column("what was found, why, and what to do")
    for verdict in found:
        table.add_row(verdict.test, f"[{COLOURS[verdict.state]}]{verdict.state}[/]", verdict.said)
    console.print(table)
