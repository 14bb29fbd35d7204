"""Passages as pieces to print: how strongly each token is shaded, which places are marked, and tokens made visible."""

import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.page import words

STEPS = {  # shade i: KL of at least the i-th of these percentiles of all tokens
    "median": "above the median", "90": "top 10 %", "95": "top 5 %", "99": "top 1 %", "99.9": "top 0.1 %"
}  # fmt: skip
DIRECTION = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
SHOWN = {"\n": "↵", "\t": "⇥", " ": "·"}


@dataclass(frozen=True)
class Piece:
    """A token as it is printed, `tail` being its last line ends; `shade` 0 to 5; `mark` numbers a place where the first
    choices differ."""

    text: str
    tail: str
    shade: int
    mark: int | None


@dataclass(frozen=True)
class Place:
    """A marked token: what the text says, what either model would have said; probabilities of what the text says."""

    number: int
    text: str
    base: str
    other: str
    p_base: words.Number | None
    p_other: words.Number | None
    kl: words.Number | None


def pieces(passage: Mapping[str, Any], ladder: Mapping[str, Any]) -> list[Piece]:
    steps = [ladder[name]["value"] or 0.0 for name in STEPS]
    marks = {mark["at"]: i + 1 for i, mark in enumerate(passage["marks"])}
    found = []
    for i, (token, kl) in enumerate(zip(passage["tokens"], passage["kl"])):
        whole = running(token, i in marks)
        text = whole.rstrip("\n")
        found.append(Piece(text, whole[len(text) :], bisect_right(steps, kl) if kl else 0, marks.get(i)))
    return found


def places(passage: Mapping[str, Any]) -> list[Place]:
    """All marked places, those of the largest KL first."""
    found = [
        Place(i + 1, alone(passage["tokens"][at := mark["at"]]), alone(mark["base"]), alone(mark["other"]),
              mark["p_base"], mark["p_other"], passage["kl"][at])
        for i, mark in enumerate(passage["marks"])
    ]  # fmt: skip
    return sorted(found, key=lambda place: -(place.kl or 0.0))


def running(token: str, marked: bool) -> str:
    """A token inside the text: line ends are shown and kept, blanks are shown where they are marked."""
    if marked and not token.strip(" "):
        return SHOWN[" "] * len(token) or "∅"
    return "".join("↵\n" if c == "\n" else readable(c) for c in token)


def alone(token: str) -> str:
    """A token by itself: every blank and line end shown."""
    return "".join(SHOWN.get(c) or readable(c) for c in token) or "∅"


def readable(c: str) -> str:
    """Controls, halves of characters and marks that turn the direction of writing, by their code."""
    if c == "\t" or not (unicodedata.category(c) in ("Cc", "Cs") or c in DIRECTION):
        return c
    return f"\\u{ord(c):04x}"
