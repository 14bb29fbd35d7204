"""The terminal tables: everything is said, nothing is wider than the terminal or read as markup, order is by size."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bitwright import table
from bitwright.export.base import Entry
from bitwright.page import front, words
from bitwright.report import Report


def example() -> Report:
    return Report.from_dict(json.loads((Path(__file__).parent / "data" / "report.json").read_text()))


def printed(what, *args, width: int = 80) -> str:
    """What a table prints into a pipe."""
    out = io.StringIO()
    what(*args, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def deep(report: Report, layers: int) -> Report:
    first = [row for row in report.rows if row.block == 0]
    rows = tuple(replace(r, name=r.name.replace(".0.", f".{i}."), block=i) for i in range(layers) for r in first)
    return replace(report, rows=rows)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("layers", [1, 200])
def test_everything_fits_without_colour(width, layers):
    report = deep(example(), layers)
    entries = [Entry("model.layers.0.mlp.up_proj.terms.0.codes", "model.layers.0.mlp.up_proj", "uint8", (768, 96), 73728)]
    text = printed(table.show, report, width=width) + printed(table.sites, report, width=width)
    text += printed(table.compare, [report, report], width=width) + printed(table.ledger, entries, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_show_says_totals_scores_verdict_and_fallbacks():
    report = example()
    text, flat = printed(table.show, report, width=200), " ".join(printed(table.show, report).split())
    for number in (report.bpw_linears, report.bpw_everything, report.scores["divergence"]["kl"]["value"]):  # type: ignore[index]
        assert words.number(number) in text
    assert f"{report.bytes:,}" in text and f"{report.original:,}" in text
    assert report.scores["verdict"]["sentence"] in flat  # type: ignore[index]
    assert all(note in text for note in report.fallbacks) and report.fallbacks
    assert "Fallbacks and notes: none" in printed(table.show, replace(report, rows=report.rows[:1]))


def test_a_pipe_loses_nothing():
    """The command line does not wrap lines in a pipe: what is longer than the console must still come out whole."""
    out = io.StringIO()
    table.show(example(), Console(file=out, width=80, soft_wrap=True, highlight=False))
    assert all(note in out.getvalue() for note in example().fallbacks)
    assert example().scores["verdict"]["sentence"] in out.getvalue()  # type: ignore[index]
    assert "by nearest rounding\n" in out.getvalue()


def test_the_parts_of_the_table_add_up_to_everything():
    lines = printed(table.show, example()).splitlines()

    def column(name: str) -> int:
        line = next(x for x in lines if x.strip().startswith(name))
        return int([word for word in line.split() if "," in word][-1].replace(",", ""))

    parts = sum(map(column, ("attention matrices", "MLP matrices", "kept as they were")))
    assert parts == column("everything") == example().bytes
    assert column("compressed matrices") + column("kept as they were") == example().bytes


def test_without_scores_it_says_how_to_measure():
    report = replace(example(), scores=None)
    assert "bitwright evaluate OUT --against zoo:lm" in " ".join(printed(table.show, report).split())


def test_scores_of_a_model_alone():
    scores = json.loads(json.dumps(example().scores)) | {"divergence": None, "floor": None, "verdict": None}
    scores["perplexity"] |= {"base": None, "ratio": None, "bits_per_byte_base": None}
    scores["tasks"] = [task | {"flips": None} for task in scores["tasks"]]
    text = printed(table.scores, scores)
    assert words.number(scores["perplexity"]["other"]["value"]) in text and "KL" not in text and "Verdict" not in text


def test_large_models_are_listed_in_part_and_say_so():
    text = printed(table.show, deep(example(), 200))
    assert len(text.splitlines()) < 120 and "the model has 200" in text
    assert "the model has" not in printed(table.show, deep(example(), 30))
    every = printed(table.sites, deep(example(), 30), width=120)
    assert all(f"layers.{i}.mlp.up_proj" in every for i in range(30))


def test_compare_sorts_by_bytes():
    small, large = (replace(example(), kept=kept, asked=example().asked | {"recipe": f"r{kept}"}) for kept in (10, 10**9))
    for reports in ([small, large], [large, small]):
        text = printed(table.compare, reports)
        assert text.index("r10,") < text.index("r1000000000")
    assert printed(table.compare, [replace(small, scores=None)])


def at(kept: int, kl: float | None) -> Report:
    """The example with so many bytes kept and such a KL."""
    scores = json.loads(json.dumps(example().scores))
    if kl is None:
        scores["divergence"] = None
    else:
        scores["divergence"]["kl"] = {"value": kl, "low": 0.9 * kl, "high": 1.1 * kl}
    return replace(example(), kept=kept, asked=example().asked | {"recipe": f"r{kept}"}, scores=scores)


def test_a_row_that_another_beats_in_size_and_kl_is_marked():
    reports = [at(40, 0.1), at(10, 0.4), at(30, 0.3), at(20, 0.3), at(50, None), at(20, 0.3)]
    assert front.front(reports) == (True, True, False, True, None, True)
    for some in (reports, reports[::-1]):
        text = printed(table.compare, some, width=160)
        best = {line.split(",")[0].strip(): "* 0." in line for line in text.splitlines() if line.strip().startswith("r")}
        assert (best["r10"], best["r30"], best["r40"], best["r50"]) == (True, False, True, False)
        assert "Dominated: 1 of 6." in text
    assert "front" not in printed(table.compare, [at(50, None)])
    assert printed(table.compare, []) and front.front([]) == ()


def test_the_page_of_a_comparison_shows_the_front_and_runs_nothing(tmp_path):
    reports = [at(4_000_000, 0.1), at(1_000_000, 0.4), replace(at(3_000_000, 0.5), asked={**example().asked, "recipe": "<b>x"})]
    front.write(reports, tmp_path)
    page = (tmp_path / "compare.html").read_text()
    assert page.isascii() and "<script" not in page and "http://" not in page and "<b>x" not in page
    assert page.count("<circle") == 3 and page.count("dominated</td>") == 1
    (line,) = re.findall(r'<polyline points="([^"]*)"', page)
    places = [tuple(map(float, place.split(","))) for place in line.split()]
    assert len(places) == 2 and places[0][0] < places[1][0] and places[0][1] < places[1][1]  # y grows downwards, KL falls
    for odd in ([], [at(5, None)], [at(5, 0.0), at(6, 0.0)]):
        front.write(odd, tmp_path)


def test_names_are_not_markup():
    rows = (replace(example().rows[0], name="a.[red]b[/nothing]", notes=("[/oops] [bold]",)),)
    report = replace(example(), rows=rows, asked=example().asked | {"model": "[link=x]m"})
    text = printed(table.show, report, width=200) + printed(table.sites, report, width=200)
    assert "[link=x]m" in text and "[/oops] [bold]" in text and "a.[red]b[/nothing]" in text
