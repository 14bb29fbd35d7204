"""Pictures as inline SVG, drawn here so that the page needs no script.

A picture has no viewBox: it is as wide as its box, every x is a percentage, and text keeps the size of the page's
text, so one drawing serves a phone and a wide screen. Only lines through many points are stretched, in a box of their
own. Colours are those of style.css (class names say which); whatever colour tells is told by shape or words as well.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bitwright.page import words
from bitwright.page.words import Number

BOUNDS = ((0.01, "tiny"), (0.05, "small"), (0.2, "visible"), (math.inf, "damaged"))  # card: evaluation, section 7
DOTS = 48  # most points of a line that are also drawn as dots
Point = tuple[Number, Number]


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """One element; attribute names with _ for -, numbers with at most two decimals, everything escaped."""
    said = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(short(v))}"' for k, v in attributes.items())
    return Markup(f"<{name}{said}>{Markup('').join(escape(x) for x in inside)}</{name}>")


def short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def pc(value: Number) -> str:
    return f"{short(float(value))}%"


def picture(says: str, height: int, *inside: Markup, kind: str = "plot") -> Markup:
    """`says`: the picture in a sentence, for those who cannot see it."""
    return tag("svg", *inside, class_=kind, height=height, role="img", aria_label=says)


@dataclass(frozen=True)
class Axis:
    """From a value to per cent of the picture."""

    low: Number
    high: Number
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[Number | None], log: bool = False) -> "Axis":
        """Over all finite values (log: positive ones) with a little room; from 0 where it is not log."""
        known = [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(known), max(known)) if known else (0.1, 1.0)
        return cls(low / 1.25, high * 1.25, True) if log else cls(0.0, 1.08 * high or 1.0)

    def at(self, value: Number) -> float:
        low, high, v = (math.log(max(x, 1e-300)) if self.log else x for x in (self.low, self.high, value))
        return 100 * min(max((v - low) / (high - low), 0.0), 1.0) if high > low else 50.0

    def ticks(self, most: int = 5) -> list[Number]:
        """Round numbers inside, at most about `most` of them."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for digits, every in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 10)):
                found: list[Number] = [d * 10.0**p for p in range(first, last + 1) if p % every == 0 for d in digits]
                found = [v for v in found if self.low <= v <= self.high]
                if len(found) <= most:
                    return found
            return found
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((d * power for d in (1, 2, 5) if d * power >= rough), 10 * power)
        start, stop = math.ceil(self.low / step - 1e-12), math.floor(self.high / step + 1e-12)
        return [step * i for i in range(start, stop + 1)]


def side(axis: Axis, unit: str = "", scale: Number = 1) -> Markup:
    """The y axis: hairlines and their values."""
    return Markup("").join(
        tag("line", x1=0, x2="100%", y1=pc(100 - axis.at(v)), y2=pc(100 - axis.at(v)), class_="grid")
        + tag("text", f"{scale * v:.6g}{unit}", x=0, y=pc(100 - axis.at(v)), dx=-7, dy=4, class_="tick end")
        for v in axis.ticks(4)
    )


def below(places: Iterable[tuple[Number, str]]) -> Markup:
    """The x axis and its values, at per cents of the picture's width."""
    values = [tag("text", label, x=pc(at), y="100%", dy=17, class_="tick middle") for at, label in places]
    return tag("line", x1=0, x2="100%", y1="100%", y2="100%", class_="base") + Markup("").join(values)


def anchor(at: Number) -> str:
    """Where a label is held, so that it stays inside."""
    return "start" if at < 12 else "end" if at > 88 else "middle"


def verdict_scale(kl: Number | None, low: Number | None, high: Number | None, floor: Number | None) -> Markup:
    """Mean KL on a log axis from 1e-4 to 1 with the zones of the verdict."""
    axis, noise = Axis(1e-4, 1.0, True), 2 * (floor or 0)
    zones, start = [], 1e-4
    for i, (bound, name) in enumerate([(noise, "noise"), *BOUNDS]):
        stop = min(bound, 1.0)
        if stop > start:
            x, width = axis.at(start), axis.at(stop) - axis.at(start)
            zones.append(tag("rect", x=pc(x), y=26, width=pc(width), height=14, class_=f"zone z{i}"))
            if width > 12:
                zones.append(tag("text", name, x=pc(x + width / 2), y=56, class_="tick middle"))
            start = stop
    marks = Markup("").join(
        tag("text", words.number(v, 1), x=pc(axis.at(v)), y="100%", class_=f"tick {anchor(axis.at(v))}")
        for v in (1e-4, *(b for b, _ in BOUNDS if b < 1), 1.0)
    )
    pointer = Markup("")
    if kl is not None:
        x = axis.at(kl)
        if low is not None and high is not None:
            width = axis.at(high) - axis.at(low)
            pointer += tag("rect", x=pc(axis.at(low)), y=22, width=pc(width), height=22, class_="range")
        pointer += tag("line", x1=pc(x), x2=pc(x), y1=18, y2=44, class_="pointer")
        pointer += tag("text", f"this model {words.number(kl)}", x=pc(x), y=12, class_=f"label {anchor(x)}")
    says = f"Mean KL {words.number(kl)} nats on the scale of the verdict"
    return picture(says, 74, *zones, marks, pointer, kind="plot scale")


def ledger(whole: Number, parts: Sequence[tuple[str, Number]]) -> Markup:
    """One stacked bar; (class, bytes) from the left, `whole` bytes fill the width."""
    found, x = [], 0.0
    for kind, value in parts:
        width = 100 * value / whole
        found.append(tag("rect", x=pc(x), y=0, width=pc(width), height="100%", class_=f"part {kind}"))
        x += width
    said = ", ".join(words.size(value) for _, value in parts)
    return picture(f"A bar of {said}", 30, *found, kind="plot ledger")


def histogram(edges: Sequence[Number], counts: Sequence[int], marks: Sequence[tuple[str, str, Number | None]]) -> Markup:
    """Counts over log10 edges, cut to where something is. `marks`: (label, class, value); without a value left out."""
    seen = [(name, kind, math.log10(v)) for name, kind, v in marks if v is not None and v > 0]
    full = [i for i, count in enumerate(counts) if count] or [0, len(counts) - 1]
    ends = [edges[full[0]], edges[full[-1] + 1], *(max(v, edges[0]) for *_, v in seen)]
    axis = Axis(math.floor(min(ends)), max(math.ceil(max(ends)), math.floor(min(ends)) + 1))
    tall = Axis(0, 1.05 * max(counts, default=0) or 1)
    total = sum(counts) or 1
    bars = [
        bar(axis.at(a), axis.at(b) - axis.at(a), tall.at(n), f"{n:,} tokens, KL {nats(a)} to {nats(b)} nats")
        for a, b, n in zip(edges, edges[1:], counts)
        if n
    ]
    lines = [
        tag("line", x1=pc(axis.at(v)), x2=pc(axis.at(v)), y1=-10 - 16 * row, y2="100%", class_=f"mark {kind}")
        + tag("text", name, x=pc(axis.at(v)), y=-14 - 16 * row, class_=f"label {anchor(axis.at(v))}")
        for row, (name, kind, v) in enumerate(seen)
    ]
    share = Axis(0, tall.high / total)
    decades = [(axis.at(p), nats(p)) for p in range(int(axis.low), int(axis.high) + 1)]
    decades = decades[:: max(1, math.ceil(len(decades) / 7))]
    return picture("Tokens by their KL", 190, side(share, " %", 100), *bars, *lines, below(decades))


def lines(axis: Axis, blocks: int, achieved: Sequence[Point], nearest: Sequence[Point], says: str) -> Markup:
    """Two lines over depth, of (block, value): ours solid with dots, nearest rounding dashed."""
    depth = Axis(0, blocks - 1)
    found = [side(axis, "%", 100), below([(depth.at(v), f"{v:.0f}") for v in depth.ticks() if v == int(v)])]
    for kind, points in (("nearest", nearest), ("achieved", achieved)):
        places = [(depth.at(b), 100 - axis.at(v)) for b, v in points if math.isfinite(v)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        line = tag("polyline", points=path, class_=f"line {kind}" if len(places) <= DOTS else f"line {kind} fine")
        found.append(tag("svg", line, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%"))
        if len(places) <= DOTS:
            found += [tag("circle", cx=pc(x), cy=pc(y), r=2.5, class_=f"dot {kind}") for x, y in places]
    return picture(says, 110, *found)


def bars(values: Sequence[Point], blocks: int, unit: str, says: str) -> Markup:
    """A bar for every (block, value), from 0."""
    axis, wide, thick = Axis.over([v for _, v in values]), 100 / blocks, 0.4 if blocks <= 24 else 0.75
    found = [
        bar(wide * (b + 0.5 - thick / 2), thick * wide, axis.at(v), f"block {b:.0f}: {words.number(v)} {unit}") for b, v in values
    ]
    depth = [(wide * (v + 0.5), f"{v:.0f}") for v in Axis(0, blocks - 1).ticks(8) if v == int(v)]
    return picture(says, 110, side(axis), *found, below(depth))


def bar(x: Number, width: Number, height: Number, says: str) -> Markup:
    """A bar standing on the x axis; `says` is shown on pointing."""
    place = {"x": pc(x), "y": pc(100 - height), "width": pc(width), "height": pc(height)}
    return tag("rect", tag("title", says), **place, class_="bar")


def nats(log: Number) -> str:
    return words.number(10.0**log, 1)


def whisker(axis: Axis, value: Number | None, low: Number | None, high: Number | None, whole: Number | None) -> Markup:
    """A value with its interval in a table cell; the thin line is the value over everything."""
    found = []
    if whole is not None:
        found.append(tag("line", x1=pc(axis.at(whole)), x2=pc(axis.at(whole)), y1=0, y2="100%", class_="grid"))
    if low is not None and high is not None:
        found.append(tag("line", x1=pc(axis.at(low)), x2=pc(axis.at(high)), y1="50%", y2="50%", class_="whisker"))
    if value is not None:
        found.append(tag("circle", cx=pc(axis.at(value)), cy="50%", r=3, class_="dot achieved"))
    return picture(f"{words.number(value)}", 16, *found, kind="plot cell")
