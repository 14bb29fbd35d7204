"""The report as one page: one HTML file without scripts or requests, readable on a phone, in the dark and on paper.

`render` is pure: a report in, text out; front.py makes the page of several. Templates decide what is said, summary.py what is
added up, words.py how it is written, charts.py what is drawn. The text is ASCII (other characters are references), so no writer
can garble it; every string is escaped, and the page's own security policy forbids it to load or run anything.
"""

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from bitwright.report import Report

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def render(report: Report) -> str:
    """The page of one model, ASCII, ready to be written to a file."""
    asked = {"allocation": None, **report.asked}  # reports of earlier versions lack it
    return rendered("page.html.j2", report=report, asked=asked, scores=report.scores)


def rendered(template: str, **said: Any) -> str:
    """A template, filled in, as ASCII."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from bitwright.page import charts, passages, spent, summary, words

    loader = PackageLoader("bitwright", "page")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., Any]] = {
        "number": lambda x, digits=3: typeset(words.number(x, digits)),
        "percent": lambda x, digits=3: typeset(words.percent(x, digits)),
        "signed": lambda x: typeset(words.signed(x)),
        "signed_percent": lambda x: typeset(words.signed(x, words.percent)),
        "interval": lambda score: typeset(words.interval(score)),
        "interval_percent": lambda score: typeset(words.interval(score, words.percent)),
        "p": lambda x: typeset(words.probability(x)),
        "size": lambda x: typeset(words.size(x)),
        "duration": lambda x: typeset(words.duration(x)),
        "count": lambda n: f"{n:,}",
        "change": words.change,
        "typeset": typeset,
    }
    style = Markup((files("bitwright.page") / "style.css").read_text("utf-8"))
    parts = {"style": style, "charts": charts, "passages": passages, "spent": spent, "summary": summary, "words": words}
    env.filters.update(filters)
    return env.get_template(template).render(**said, **parts).encode("ascii", "xmlcharrefreplace").decode()


def typeset(text: str) -> str:
    """2.5e-6 as 2.5 x 10^-6, a true minus, and no break between a number and its unit or inside "3-bit"."""
    text = re.sub(r"(\d)e(-?\d+)", lambda m: f"{m[1]} × 10{m[2].translate(SUPERSCRIPT)}", text)
    text = re.sub(r"(?<=\d)-(?=bit)", "\u2011", re.sub(r"(^|\s)-(?=\d)", r"\1−", text))
    return re.sub(r"(?<=\d) (?=[%×\d]|bytes|[kMGT]B|s\b|min\b|h\b)", "\u00a0", text)
