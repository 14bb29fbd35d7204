"""Codecs beside each other as a page: what they keep of the float search over the bytes of a vector, and which one to take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from markupsafe import Markup

from bitwright.embed.judging import CLOSE, PLAIN, Judged, Line
from bitwright.evaluation.retrieval import Difference, difference
from bitwright.page import words
from bitwright.page.charts import Axis, below, pc, picture, side, tag

SHAPES = "●■▲◆▼★"  # of learned codecs; rings are those without training
UNTRAINED = (PLAIN, "uniform")
ENOUGH = 0.9  # of the float top k, where nothing is judged


@dataclass(frozen=True)
class Kept:
    """One codec at one width: the mean over queries with its 95 % interval."""

    line: Line
    mean: Difference
    shape: str
    trained: bool

    @property
    def interval(self) -> dict[str, float]:
        """Against floats where documents are judged, else of the mean."""
        return asdict(self.line.against or self.mean)


def measured(found: Judged) -> list[Kept]:
    learned = [name for name in dict.fromkeys(line.name for line in found.lines) if name not in UNTRAINED]
    shapes = dict(zip(learned, SHAPES * len(learned))) | {PLAIN: "○", "uniform": "□"}
    kept = []
    for line in found.lines:
        each = torch.tensor(found.per_query[f"{line.name}-{line.bits:g}"]).double()
        kept.append(Kept(line, difference(torch.zeros_like(each), each), shapes[line.name], line.name not in UNTRAINED))
    return kept


def enough(found: Judged) -> Line | None:
    """The fewest bytes that lose next to nothing; without training where that does."""
    good = [line for line in found.lines
            if (line.overlap >= ENOUGH if line.against is None else line.against.value > -CLOSE)]  # fmt: skip
    return min(good, key=lambda line: (line.bytes, line.name not in UNTRAINED, -found.worth(line)), default=None)


def measure(found: Judged) -> str:
    return f"share of the float top {found.k} found" if found.float_ndcg is None else f"nDCG@{found.k}"


def chart(found: Judged) -> Markup:
    """Bytes to the right on a log axis; codecs without training as dashed lines and rings."""
    kept = measured(found)
    ends = [end for one in kept for end in (one.mean.low, one.mean.high)] + [found.float_ndcg or 1.0]
    room = 0.06 * (max(ends) - min(ends)) or 0.05
    up, across = Axis(max(0.0, min(ends) - room), min(1.0, max(ends) + room)), Axis.over([o.line.bytes for o in kept], log=True)
    sizes = sorted({one.line.bytes for one in kept})
    drawn = [side(up), below([(across.at(size), f"{size:.0f}") for size in spaced(sizes, across)])]
    if found.float_ndcg is not None:
        y = pc(100 - up.at(found.float_ndcg))
        drawn.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="mark dashed"))
        drawn.append(tag("text", "float", x="100%", y=y, dy=-6, class_="label end"))
    for name in dict.fromkeys(one.line.name for one in kept):
        here = sorted((one for one in kept if one.line.name == name), key=lambda one: one.line.bytes)
        points = " ".join(f"{across.at(o.line.bytes):.1f},{100 - up.at(o.mean.value):.1f}" for o in here)
        line = tag("polyline", points=points, class_=f"line {'achieved' if here[0].trained else 'nearest'}")
        drawn.append(tag("svg", line, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%"))
    for one in sorted(kept, key=lambda one: one.trained):
        kind, x = "achieved" if one.trained else "nearest", pc(across.at(one.line.bytes))
        low, high = (pc(100 - up.at(end)) for end in (one.mean.low, one.mean.high))
        drawn.append(tag("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker {kind}"))
        says = f"{one.line.name}, {one.line.bits:g} bits: {one.line.bytes:.0f} bytes, {words.number(one.mean.value)}"
        glyph = {"x": x, "y": pc(100 - up.at(one.mean.value)), "dy": 4.5, "class_": f"glyph middle {kind}"}
        drawn.append(tag("text", tag("title", says), one.shape, **glyph))
    return picture(f"{measure(found)} over bytes per vector, a line for each codec", 300, *drawn)


def spaced(sizes: Sequence[float], axis: Axis) -> list[float]:
    """Those whose numbers do not run into each other."""
    shown: list[float] = []
    for size in sizes:
        if not shown or axis.at(size) - axis.at(shown[-1]) > 6:
            shown.append(size)
    return shown


def render(found: Judged, documents: str, queries: str) -> str:
    """The page, ASCII; the names are those of what was searched."""
    from bitwright.page import rendered

    said = {"found": found, "kept": measured(found), "chart": chart(found), "enough": enough(found), "measure": measure(found)}
    return rendered("searches.html.j2", **said, documents=documents, queries=queries, close=CLOSE)
