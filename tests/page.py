"""The page: complete, escaped, self-contained, small, legible in both modes, and no wider than a phone.

What a browser must judge is judged by headless Chromium, all variants in one start: each in a frame of 390 pixels, its
details opened, because a phone's page that scrolls sideways is broken wherever that happens.
"""

import json
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

from bitwright.evaluation.evaluation import LEVELS, Evaluation, verdict
from bitwright.page import charts, render, words
from bitwright.report import Report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
    *("--enable-logging=stderr", "--v=0", "--hide-scrollbars"),
)
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
WIDE = "W" * 400
LOADERS = {"script", "img", "iframe", "object", "embed", "video", "audio", "source", "form", "base"}


def example() -> Report:
    return Report.from_dict(json.loads((Path(__file__).parent / "data" / "report.json").read_text()))


def deep(report: Report, layers: int) -> Report:
    """The same model with its first block repeated."""
    first = [row for row in report.rows if row.block == 0]
    rows = tuple(replace(r, name=r.name.replace(".0.", f".{i}."), block=i) for i in range(layers) for r in first)
    return replace(report, rows=rows, weights=report.kept // 2 + sum(row.weights for row in rows))


def without_numbers(value: object) -> object:
    """The JSON of one window: no spread, and what is not finite is null."""
    if isinstance(value, dict):
        return {k: None if k in ("low", "high", "sd") else without_numbers(v) for k, v in value.items()}
    return [without_numbers(v) for v in value] if isinstance(value, list) else value


def hostile(report: Report) -> Report:
    """Every string that comes from outside says something else than it should."""
    scores = json.loads(json.dumps(report.scores))
    passage = scores["passages"][0]
    tokens = [HOSTILE, WIDE, "\u202e", "\x00", "\ud800", "", "   ", "\n\n"]
    passage |= {"title": HOSTILE, "domain": WIDE, "tokens": tokens, "peak": 1}
    passage["kl"] = [0.0, 9.0, 0.01, 0.02, 0.1, 0.2, 0.3, None]
    mark = {"base": HOSTILE, "other": WIDE, "p_base": None, "p_other": 1e-9}
    passage["marks"] = [mark | {"at": i} for i in range(len(tokens))]
    scores["data"] |= {"name": HOSTILE, "domains": {WIDE: 1}}
    scores["tasks"][0]["name"] = scores["strata"][0]["name"] = WIDE
    scores["verdict"] = {"level": HOSTILE, "sentence": HOSTILE}
    rows = (replace(report.rows[0], name=f"{WIDE}.{HOSTILE}", notes=(HOSTILE, WIDE)), *report.rows[1:])
    asked = report.asked | {"model": WIDE, "recipe": HOSTILE, "grid": {"use": HOSTILE, "odd": [1]}, "inputs": WIDE}
    return replace(report, asked=asked, rows=rows, scores=scores, provenance={WIDE: HOSTILE, "x": WIDE})


def variants() -> dict[str, Report]:
    report = example()
    assert report.scores is not None
    alone = json.loads(json.dumps(report.scores)) | {"divergence": None, "floor": None, "verdict": None}
    alone |= {"strata": [], "histogram": None, "passages": []}
    alone["perplexity"] |= {"base": None, "ratio": None, "ratio_median": None, "bits_per_byte_base": None}
    alone["tasks"] = [task | {"flips": None, "mass_base": None} for task in alone["tasks"]]
    same = json.loads(json.dumps(report.scores)) | {"floor": {"kl": 0.0, "runs": []}, "passages": [], "tasks": []}
    zero = {"value": 0.0, "low": 0.0, "high": 0.0, "sd": 0.0, "n": 9, "unit": "nats"}
    same["divergence"] |= {"kl": zero, "ladder": dict.fromkeys(same["divergence"]["ladder"], zero)}
    outside = tuple(replace(row, block=None, measure="weights", error=float("nan")) for row in report.rows)
    return {
        "full": report,
        "unmeasured": replace(report, scores=None),
        "alone": report.with_scores(alone),
        "identical": report.with_scores(same),
        "one window": report.with_scores(without_numbers(report.scores)),
        "one layer": deep(report, 1),
        "200 layers": deep(report, 200),
        "no layers": replace(report, rows=outside),
        "hostile": hostile(report),
    }


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render(report) for name, report in variants().items()}


def test_every_variant_is_one_small_self_contained_file(pages):
    for name, page in pages.items():
        assert page.isascii() and len(page) < 3_000_000, name
        assert "default-src 'none'" in page and "@import" not in page and "url(" not in page, name
        for element, attributes in elements(page):
            assert element not in LOADERS, (name, element)
            for attribute, value in attributes.items():
                refers = attribute in ("src", "srcset", "href", "xlink:href", "action", "data", "poster")
                assert not refers or value.startswith("#") or value == "data:,", (name, element, value)
                assert not attribute.startswith("on"), (name, element, attribute)
    assert len(pages["full"]) < 300_000


def test_the_sections_come_in_order_and_say_the_numbers(pages):
    page = unescape(pages["full"]).replace("\xa0", " ").replace("\u2011", "-")
    heads = ["asked", "costs", "change", "layers", "passages", "notes", "provenance"]
    places = [page.index(f'<section id="{head}">') for head in heads]
    assert all(a < b for a, b in pairwise(places))
    report = example()
    kl, exact = report.scores["divergence"]["kl"], f"{report.bytes:,}"  # type: ignore[index]
    for number in (kl["value"], kl["low"], kl["high"], report.bpw_linears, report.bpw_everything):
        assert words.number(number) in page
    assert exact in page and report.scores["verdict"]["sentence"][1:] in page  # type: ignore[index]
    assert report.asked["calibration"]["sha256"] in page
    assert page.count("How to read it") >= 6


def test_fallbacks_are_listed_and_their_absence_is_said(pages):
    assert example().fallbacks[0] in pages["full"]
    clean = replace(example(), rows=tuple(replace(row, notes=()) for row in example().rows))
    assert "None: every matrix was done as asked." in render(clean)
    assert "None: every matrix was done as asked." not in pages["full"]
    assert "200 matrices, model.layers.0.self_attn.o_proj first: " + example().rows[3].notes[0] in pages["200 layers"]


def test_without_scores_the_page_says_how_to_measure(pages):
    command = "bitwright evaluate OUT --against zoo:lm"
    assert command in pages["unmeasured"] and command in pages["alone"] and command not in pages["full"]


def test_strings_from_outside_are_escaped(pages):
    page = pages["hostile"]
    assert "&lt;script&gt;" in page and "<img" not in page
    assert "&#8238;" not in page and "\\u202e" in page and "\\u0000" in page and "\\ud800" in page


def test_a_recipe_that_is_stored_whole_is_told_whole():
    rounding = {"use": "chain", "steps": [{"use": "gptq", "damp": 0.01}, {"use": "quantease", "iters": 3}]}
    whole = {"use": "recipe", "name": "best", "grid": {"use": "table", "table": "nf4"}, "rounding": rounding}
    page = render(replace(example(), asked=example().asked | {"recipe": whole}))
    assert "the points of the nf4 table" in page and "GPTQ, then QuantEase" in page and "0.01" in page


def test_the_page_and_the_evaluation_speak_of_the_same_things():
    """The page reads a plain dict; its example must be what `evaluate` writes, its zones those of the verdict."""
    scores = example().scores
    assert Evaluation.from_json(scores).to_json() == scores
    assert charts.BOUNDS[:-1] == tuple((bound, level) for bound, level, _ in LEVELS)
    assert {verdict(kl, 1e-3).level for kl in (1e-4, 5e-3, 0.02, 0.1, 3.0)} == set(words.VERDICTS)


@pytest.mark.parametrize("value", [0.0, 3e-9, 2.4e-4, 0.0832, 1.0, 9.996, 218.0, 4_559_872.0])
def test_numbers_keep_three_digits(value):
    read = float(words.number(value).replace(",", ""))
    assert read == pytest.approx(value, rel=5e-3)


def test_shares_near_one_are_not_rounded_up_to_it():
    assert words.percent(1.0) == "100 %"
    for share in (0.999, 0.99987, 1 - 1e-6):
        assert words.percent(share) != "100 %" and float(words.percent(share)[:-2]) < 100


@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_rise_and_lie_inside(log):
    for low, high in ((1e-9, 3.0), (0.01, 0.02), (0.9, 1.1), (1e-4, 1.0), (2.0, 1e6)):
        axis = charts.Axis(low, high, log)
        ticks = axis.ticks()
        assert len(ticks) <= 7 and all(a < b for a, b in pairwise(ticks)) and all(low <= t <= high for t in ticks)
        assert axis.at(low) == 0 and axis.at(high) == 100


def test_text_has_contrast_in_both_modes():
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    style = (files("bitwright.page") / "style.css").read_text()
    palettes = re.findall(r":root \{(.*?)\}", style, re.S)
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", palette)) for palette in palettes)
    assert set(light) == set(dark)
    for mode in (light, dark):
        for ink in ("ink", "muted", "accent"):
            assert contrast(mode[ink], mode["paper"]) >= 4.5, ink
        for shade in ("raised", "h1", "h2", "h3", "h4", "h5"):
            assert contrast(mode["ink"], mode[shade]) >= 4.5, shade
        assert min(contrast(mode[a], mode["paper"]) for a in ("p0", "p1")) >= 3
        shades = [contrast(mode["paper"], mode[f"h{i}"]) for i in range(1, 6)]
        assert all(a < b for a, b in pairwise(shades))


def contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    """Every element of a page with its attributes, as a parser sees them."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, {k: v or "" for k, v in attrs}))  # type: ignore[method-assign]
    parser.feed(page)
    return found


@in_browser
def test_no_page_is_wider_than_a_phone_or_complains(pages, tmp_path):
    wide = pages["unmeasured"].replace("</main>", '<div style="width:500px">x</div></main>')
    seen, errors = on_a_phone(pages | {"too wide": wide}, tmp_path)
    assert seen.pop("too wide")["width"] > 390, "the check itself"
    assert set(seen) == set(pages)
    for name, found in seen.items():
        assert found["width"] <= 390, (name, found)
        assert found["requests"] == 0 and found["height"] > 1000, (name, found)
    assert not errors


@in_browser
def test_the_browser_check_notices_errors(pages, tmp_path):
    page = pages["unmeasured"].replace("</main>", "<script>1</script></main>")
    assert on_a_phone({"script": page}, tmp_path)[1], "the page's policy must refuse a script, and this test must see it"


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_screenshot_shows_the_page_in_its_mode(pages, tmp_path, dark):
    (tmp_path / "page.html").write_text(pages["full"])
    picture = tmp_path / "page.png"
    mode = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(tmp_path, "page.html", mode, f"--screenshot={picture}", "--window-size=1280,900")
    assert picture.stat().st_size > 20_000
    assert (sum(first_pixel(picture.read_bytes())) < 3 * 64) == dark


def first_pixel(png: bytes) -> bytes:
    """Red, green, blue of the first pixel: every filter of the format leaves them as they are."""
    at, data = 8, b""
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    return zlib.decompressobj().decompress(data, 4)[1:4]


def on_a_phone(pages: dict[str, str], folder: Path) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What each page measures in a frame of 390 pixels with its details open, and the console's complaints."""
    for i, page in enumerate(pages.values()):
        (folder / f"{i}.html").write_text(page)
    frame = '<iframe src="{}.html" width="390" height="800" style="border:0"></iframe>'
    frames = "".join(map(frame.format, range(len(pages))))
    script = """onload = () => { const found = [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument;
        page.querySelectorAll("details").forEach(d => d.open = true);
        return {width: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
                requests: frame.contentWindow.performance.getEntriesByType("resource").length};
      }); document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>"; }"""
    (folder / "phone.html").write_text(f"<!doctype html><script>{script}</script><body>{frames}")
    done = browse(folder, "phone.html", "--dump-dom", "--virtual-time-budget=20000")
    found = re.search(r"<pre>(\[.*\])</pre>", done.stdout)
    assert found, done.stdout[:500] + done.stderr[-500:]
    return dict(zip(pages, json.loads(found[1]))), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def browse(folder: Path, page: str, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = folder / "profile"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, (folder / page).as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
