"""The front of a comparison: models than which no other is both as small and as near to the original; as a page with one picture.

    a is dominated   <=>   some b:  bytes_b <= bytes_a,  KL_b <= KL_a,  one of them less

By means: neighbours whose intervals overlap may change places on other text, so the page shows the intervals as well.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from bitwright.page import words
from bitwright.page.charts import Axis, below, pc, picture, side, tag
from bitwright.page.words import Number
from bitwright.report import Report


def kl(report: Report) -> Number | None:
    """None where it has not been measured."""
    distance = (report.scores or {}).get("divergence")
    return None if not distance else distance["kl"]["value"]


def front(reports: Sequence[Report]) -> tuple[bool | None, ...]:
    """By report whether no other dominates it; None where its KL is not known."""
    known = [(r.bytes, loss) for r in reports if (loss := kl(r)) is not None]

    def beaten(size: int, loss: Number) -> bool:
        return any(b <= size and k <= loss and (b, k) != (size, loss) for b, k in known)

    return tuple(None if (loss := kl(r)) is None else not beaten(r.bytes, loss) for r in reports)


def chart(reports: Sequence[Report]) -> Markup:
    """Bytes to the right, KL upwards on a log axis; the front as a line with full dots, the dominated as rings."""
    shown = [(r, loss, on) for r, on in zip(reports, front(reports)) if (loss := kl(r)) is not None]
    shown.sort(key=lambda one: one[0].bytes)
    ends = [r.scores["divergence"]["kl"][end] for r, *_ in shown if r.scores for end in ("low", "high")]
    up, across = Axis.over([*(loss for _, loss, _ in shown), *ends], log=True), Axis.over([r.bytes for r, *_ in shown])
    across = Axis(min((r.bytes for r, *_ in shown), default=0) * 0.95, across.high)
    line = " ".join(f"{across.at(r.bytes):.1f},{100 - up.at(loss):.1f}" for r, loss, on in shown if on)
    path = tag("polyline", points=line, class_="line achieved")
    found = [side(up), below([(across.at(v), words.size(v)) for v in across.ticks()])]
    found.append(tag("svg", path, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%"))
    for report, loss, on in shown:
        x, score = pc(across.at(report.bytes)), (report.scores or {})["divergence"]["kl"]
        says = f"{words.title(report.asked)}: {words.size(report.bytes)}, KL {words.number(loss)}{'' if on else ', dominated'}"
        ends = [pc(100 - up.at(score[end])) for end in ("low", "high")]
        found.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_="whisker"))
        dot = {"cx": x, "cy": pc(100 - up.at(loss)), "r": 4 if on else 3, "class_": f"dot {'achieved' if on else 'nearest'}"}
        found.append(tag("circle", tag("title", says), **dot))
    return picture("KL over the size of the models; a line joins those that no other dominates", 260, *found)


def write(reports: Sequence[Report], out: Path) -> None:
    """The page `compare.html` of a comparison."""
    from bitwright.page import rendered

    ordered = sorted(reports, key=lambda r: r.bytes)
    found = [{"report": r, "on": on} for r, on in zip(ordered, front(ordered))]
    (out / "compare.html").write_text(rendered("compare.html.j2", rows=found, chart=chart(ordered)))
