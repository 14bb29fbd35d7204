"""The page of `bitwright index evaluate`: what it says is what was measured, escaped, self-contained, no wider than a phone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from page import HOSTILE, LOADERS, elements, in_browser, on_a_phone

from bitwright import console
from bitwright.cli import app
from bitwright.embed.judging import Judged, Line
from bitwright.evaluation.retrieval import Difference
from bitwright.page.searches import enough, render

WIDTHS = {0.5: 0.5, 1.0: 0.7, 2.0: 0.9, 4.0: 0.99}


def judged(judgements: bool = True) -> Judged:
    """Learned codes better by 0.05 where there is room."""
    lines, per_query = [], {}
    for bits, plain in WIDTHS.items():
        for name, value in (
            ("additive", min(plain + 0.05, 0.995)),
            ("itq", plain + 0.001),
            ("rotated", plain),
            ("uniform", plain - 0.01),
        ):
            against = Difference(value - 1, value - 1.02, value - 0.98) if judgements else None
            lines.append(Line(name, bits, 12 * bits + 2, 9000, value, value if judgements else None, against))
            per_query[f"{name}-{bits:g}"] = tuple((value + 0.02 * torch.randn(40)).tolist())
    return Judged(10, 5000, 40, 96, "cosine", 1.0 if judgements else None, tuple(lines), per_query)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    torch.manual_seed(0)
    one = judged()
    bad = replace(one, lines=one.lines[:4], float_ndcg=1.0)
    return {"judged": render(one, "documents.npy", "queries.npy"), "alone": render(judged(False), HOSTILE, "W" * 300),
            "nothing does": render(bad, "a.npy", "b.npy")}  # fmt: skip


def test_the_page_says_what_was_measured(pages: dict[str, str]):
    page = pages["judged"]
    assert "50 bytes a vector" in page and "lose less than 0.01" in page and 'class="whisker achieved"' in page
    assert "rotated, no training" in page and "uniform, no training" in page and "itq, no training" not in page
    assert "against rotated" in page and "nDCG@10" in page and "5,000 documents" in page
    assert "is as good as floats" in pages["nothing does"] and "of the float top 10" in pages["alone"]
    assert (line := enough(judged())) is not None and (line.name, line.bits) == ("additive", 4.0)


def test_without_training_is_told_first_where_it_does():
    one = judged()
    better = tuple(replace(line, against=Difference(-0.001, -0.002, 0.001)) if line.bits == 4 else line for line in one.lines)
    assert (line := enough(replace(one, lines=better))) is not None and line.name == "rotated"


def test_the_page_is_alone_and_escaped(pages: dict[str, str]):
    for page in pages.values():
        assert page.isascii() and not LOADERS & {name for name, _ in elements(page)}
        assert not any(name.startswith("on") for _, attributes in elements(page) for name in attributes)
    assert "alert(1)&lt;/script&gt;" in pages["alone"]


@in_browser
def test_it_is_no_wider_than_a_phone(pages: dict[str, str], tmp_path: Path):
    seen, errors = on_a_phone(pages, tmp_path)
    assert not errors and all(found["width"] <= 390 and found["requests"] == 0 for found in seen.values()), seen


def test_the_command_writes_it(tmp_path: Path):
    import numpy as np

    np.save(tmp_path / "x.npy", torch.randn(200, 16).numpy())
    asked = [
        "index",
        "evaluate",
        str(tmp_path / "x.npy"),
        "--queries",
        str(tmp_path / "x.npy"),
        "--bits",
        "1,2",
        "--codecs",
        "rotated",
    ]
    assert console.ends(lambda: app([*asked, "-o", str(tmp_path / "page.html")])) == 0
    assert "rotated" in (tmp_path / "page.html").read_text()
    assert console.ends(lambda: app([*asked, "-o", str(tmp_path / "no" / "page.html")])) == 2
