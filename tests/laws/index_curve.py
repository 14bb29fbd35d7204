"""The measured curve in the header of a file of codes: what it says is what a search finds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clusters import clustered

from bitwright import console
from bitwright.cli import app
from bitwright.embed import codecs, curve
from bitwright.embed.codec import Metric
from bitwright.embed.codefile import CodeFile
from bitwright.embed.index import Index
from bitwright.embed.sources import Source


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("bits", [0.5, 2.0])
def test_it_is_what_a_search_by_hand_finds(metric: Metric, bits: float):
    every = clustered(700)
    x, q = every[:600], every[600:]
    codec = codecs.fit(x, bits, metric=metric)
    told = curve.curve(codec, x, q)
    unit = torch.nn.functional.normalize if metric == "cosine" else torch.clone
    scores = unit(q) @ unit(x).T
    for times in curve.OVERSAMPLES:
        hits = Index.build(codec, x).search(q, 10, float(times)).ids
        many = Index.build(codec, x).search(q, 10 * times).ids
        for name, rows in (("recall_at_10", hits), ("reranked_at_10", many)):
            shared = [len({*a} & {*b}) / 10 for a, b in zip(rows.tolist(), scores.topk(10).indices.tolist())]
            assert told[name][str(times)] == pytest.approx(np.mean(shared), abs=1e-4)


def test_it_rises_with_oversample_and_with_bits():
    every = clustered(700)
    curves = [curve.curve(codecs.fit(every[:600], bits), every[:600], every[600:]) for bits in (0.5, 1.0, 2.0, 4.0)]
    for told in curves:
        recall, again = ([told[name][str(times)] for times in curve.OVERSAMPLES] for name in ("recall_at_10", "reranked_at_10"))
        assert min(recall[1:]) >= recall[0] - 0.01 and again == sorted(again) and again[-1] > again[0]
    coarse, *_, fine = curves
    assert all(fine[name]["1"] > coarse[name]["1"] + 0.1 for name in fine)


@pytest.mark.parametrize("documents", [1, 2, 7, 10])
def test_of_few_documents_all_are_the_top(documents: int):
    x = clustered(100)
    told = curve.curve(codecs.fit(x, 1.0), x[:documents], x[-5:])
    assert set(told["recall_at_10"].values()) == set(told["reranked_at_10"].values()) == {1.0}


def test_who_asks_is_no_document_and_was_not_fitted_on_where_that_can_be(monkeypatch: pytest.MonkeyPatch):
    source, seen = Source(clustered(500).numpy()), []
    monkeypatch.setattr(curve, "curve", lambda codec, x, q: seen.append((x, q)) or {})
    monkeypatch.setattr(curve, "DOCUMENTS", 300)
    codec = codecs.fit(source.sample(100), 1.0)
    assert [curve.measured(codec, source, fitted)["held_out"] for fitted in (100, 375, 376, 65536)] == [True, True, False, False]
    rows = lambda x: {tuple(row) for row in x.tolist()}  # noqa: E731
    for x, q in seen:
        assert len(q) == 125 and len(x) == 300 and not rows(x) & rows(q)
    assert not rows(seen[0][1]) & rows(source.sample(375))


def test_build_measures_and_tells_unless_it_shall_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def built(rows: int, *more: object) -> tuple[str, dict]:
        vectors, file = tmp_path / "x.npy", tmp_path / "v.codes"
        np.save(vectors, clustered(rows).numpy())
        words = ["index", "build", vectors, "-o", file, "--overwrite", *more]
        assert console.ends(lambda: app([str(word) for word in words])) == 0
        return " ".join(capsys.readouterr().out.split()), dict(CodeFile.open(file).about)

    said, about = built(400, "--sample", 256, "--bits", 2)
    told = about["measured"]
    assert (told["queries"], told["documents"], told["held_out"]) == (100, 300, True)
    assert curve.said(told) in said and f"top 10 shared with floats: {told['recall_at_10']['1']:.2f} (" in said
    assert console.ends(lambda: app(["index", "inspect", str(tmp_path / "v.codes"), "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["about"]["measured"] == told
    said, about = built(400, "--no-measure")
    assert "measured" not in about and "shared" not in said
    said, about = built(16, "--bits", 4)
    assert about["measured"]["documents"] == 12 and "fitted on" in said
