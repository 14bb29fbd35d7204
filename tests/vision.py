"""Image classifiers from checkpoint to report: data, compression, the file read back, what is measured. Images are made up here."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import bitwright
from bitwright import recipes
from bitwright.calibrate.images import Images, images, read
from bitwright.cli import app
from bitwright.errors import BadRequest
from bitwright.evaluation import ImageBaseline, evaluate_images
from bitwright.layout import Layout
from bitwright.recipe import Rule

CIFAR = os.environ.get("BITWRIGHT_CIFAR10", "")  # a folder with train.npz and test.npz, for the acceptance checks
DEEP = Rule("re:resnet\\.blocks\\.[3-8]\\..*", ignore=True)  # the tests compress three blocks, which takes seconds


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 smooth random images, each labelled as zoo:resnet20 sees it."""
    gen = torch.Generator().manual_seed(0)
    parts = [F.interpolate(torch.rand(400, 3, n, n, generator=gen), 32, mode="bicubic") for n in (2, 4, 8, 32)]
    pixels = (255 * sum(w * p for w, p in zip((0.4, 0.4, 0.3, 0.1), parts)) / 1.2).clamp(0, 255).byte()  # type: ignore[union-attr]
    with torch.no_grad():
        labels = bitwright.load("zoo:resnet20")(pixel_values=pixels.float() / 127.5 - 1).logits.argmax(1)
    path = tmp_path_factory.mktemp("images") / "made-up.safetensors"
    save_file({"images": pixels, "labels": labels}, path)
    return path


def logits(model: Any, data: Images) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(pixel_values=x).logits for x in data.pixels.split(64)])


# --- data ---------------------------------------------------------------------------------------------------------------------


def test_halves_are_disjoint_and_draws_repeat(made_up: Path) -> None:
    one, same = (images("zoo:resnet20", made_up, 64) for _ in range(2))
    other = images("zoo:resnet20", made_up, 64, "evaluation")
    assert one.sha256 == same.sha256 != other.sha256
    seen = {x.numpy().tobytes() for x in one.pixels}
    assert len(seen) == 64 and not seen & {x.numpy().tobytes() for x in other.pixels}
    assert one.take(5).sha256 == one.part(slice(0, 5)).sha256 and float(one.pixels.min()) >= -1


def test_arrays_and_files_are_the_same_images(made_up: Path, tmp_path: Path) -> None:
    whole, labels = read(made_up, {})
    np.save(tmp_path / "a.npy", torch.stack(list(whole)).permute(0, 2, 3, 1).numpy())
    again, none = read(tmp_path / "a.npy", {})
    assert none is None and labels is not None and all(torch.equal(a, b) for a, b in zip(whole, again))
    a, b = images("zoo:resnet20", made_up, 16), images("zoo:resnet20", tmp_path / "a.npy", 16)
    assert torch.equal(a.pixels, b.pixels) and bool((b.labels == -1).all())


def test_folders_are_classes(made_up: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    whole, _ = read(made_up, {})
    for i, name in enumerate(("cat", "ship", "cat")):
        (tmp_path / name).mkdir(exist_ok=True)
        image.fromarray(whole[i].permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i}.png")
    found = images("zoo:resnet20", tmp_path, 3, None)
    config = json.loads((Path(bitwright.__file__).parent / "zoo/resnet20/config.json").read_text())
    assert sorted(found.labels.tolist()) == sorted(config["label2id"][name] for name in ("cat", "cat", "ship"))


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.full((4, 48, 64, 3), 255, np.uint8))
    found = images("zoo:vit", tmp_path / "large.npy", 4, None)
    assert found.pixels.shape == (4, 3, 32, 32) and torch.allclose(found.pixels, torch.ones(()), atol=1e-5)


def test_bad_data_is_refused_in_words(made_up: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.zeros((4, 32, 32, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    save_file(
        {"images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "labels": torch.zeros(3).long()}, tmp_path / "short.safetensors"
    )
    (tmp_path / "empty").mkdir()
    for name in ("floats.npy", "objects.npy", "short.safetensors", "empty", "none.npy"):
        with pytest.raises(BadRequest):
            images("zoo:resnet20", tmp_path / name, 4, None)
    with pytest.raises(BadRequest, match="fewer"):
        images("zoo:resnet20", made_up, 1000)
    with pytest.raises(BadRequest, match="images"):
        bitwright.calibration("zoo:vit")
    with pytest.raises(BadRequest, match="takes no images"):
        images("zoo:lm", made_up, 4)
    with pytest.raises(BadRequest, match="takes no images"):
        bitwright.compress("zoo:lm", recipes.rtn(), images("zoo:vit", made_up, 4))
    with pytest.raises(BadRequest, match="classes"):
        evaluate_images(bitwright.load("zoo:vit"), None, replace(images("zoo:vit", made_up, 4), labels=torch.full((4,), -1)))


# --- compression --------------------------------------------------------------------------------------------------------------


def test_more_bits_and_more_knowledge_are_closer(made_up: Path) -> None:
    """KL(8 bits) < KL(gptq, 4 bits) < KL(nearest, 4 bits) on images that nothing was fitted to."""
    data, held = images("zoo:resnet20", made_up, 100), images("zoo:resnet20", made_up, 150, "evaluation")
    base = ImageBaseline.of(bitwright.load("zoo:resnet20"), held, noise_floor=False)
    kl = {}
    for name, bits in (("rtn", 8), ("rtn", 4), ("gptq", 8), ("gptq", 4)):
        recipe = replace(recipes.get(name)(bits=bits, group=None), rules=(DEEP,))
        small, report = bitwright.compress("zoo:resnet20", recipe, data, batch=25)
        assert len(report.rows) == 6 and report.bpw_linears == pytest.approx(bits + 16 / 216, abs=0.1)
        found = evaluate_images(small, base, held)
        assert found.divergence is not None and found.tasks[0].flips is not None
        kl[name, bits] = found.divergence.kl.value
    assert max(kl["rtn", 8], kl["gptq", 8]) < kl["gptq", 4] < kl["rtn", 4]
    assert kl["gptq", 8] < kl["rtn", 8]


@pytest.mark.parametrize("model, rule", [("zoo:resnet20", DEEP), ("zoo:vit", Rule("re:vit\\.layers\\.[1-5]\\..*", ignore=True))])
def test_what_is_written_is_what_comes_back(model: str, rule: Rule, made_up: Path, tmp_path: Path) -> None:
    """Also what embeds and the head, also by transformers itself."""
    from transformers import AutoModelForImageClassification

    data = images(model, made_up, 24)
    recipe = replace(recipes.gptq(bits=4, group=None), rules=(rule,), head=True)
    memory, report = bitwright.compress(model, recipe, data)
    disk, again = bitwright.compress(model, recipe, data, out=tmp_path / "out")
    assert torch.equal(logits(memory, data), logits(disk, data))
    assert [row.error for row in report.rows] == [row.error for row in again.rows]
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(theirs, data), logits(disk, data))
    outside = {row.name for row in report.rows if row.block is None}
    assert "classifier" in outside and len(outside) == 2
    stored = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert report.bytes <= stored < report.bytes + 40_000  # headers


def test_old_and_new_names_of_a_vit_are_one_model(tmp_path: Path, made_up: Path) -> None:
    """Files of hub checkpoints have the names from before transformers 5; those in memory have the new ones."""
    recipe = replace(recipes.rtn(bits=4, group=64), rules=(Rule("re:vit\\.layers\\.[1-5]\\..*", ignore=True),))
    data = images("zoo:vit", made_up, 4)
    on_disk, _ = bitwright.compress("zoo:vit", recipe)
    in_memory, _ = bitwright.compress(bitwright.load("zoo:vit"), recipe)
    assert torch.equal(logits(on_disk, data), logits(in_memory, data))


def test_two_lanes_and_gradients_walk_convolutions(made_up: Path) -> None:
    """Statistics beyond second moments: cross moments of two lanes, squared gradients of every site."""
    from bitwright.calibrate.gradients import FISHER, OUTPUT, gradients
    from bitwright.checkpoint import open_checkpoint
    from bitwright.index import WIRINGS, load
    from bitwright.progress import silent

    source = open_checkpoint("zoo:resnet20")
    wiring, data = load(WIRINGS["bitwright_resnet"])(source.config), images("zoo:resnet20", made_up, 2)
    found = dict(gradients(source, wiring, data, torch.device("cpu"), silent))
    assert found["resnet.blocks.3.shortcut"][FISHER].shape == (48, 24) and found["resnet.blocks.0.conv1"][OUTPUT].shape == (24,)
    assert all(bool(torch.isfinite(t).all()) for stats in found.values() for t in stats.values())


# --- what is measured ---------------------------------------------------------------------------------------------------------


def test_a_model_is_itself(made_up: Path) -> None:
    held = images("zoo:resnet20", made_up, 80, "evaluation")
    model = bitwright.load("zoo:resnet20")
    found = evaluate_images(model, model, held)
    assert found.divergence is not None and found.divergence.kl.value == 0 and found.verdict is not None
    assert found.verdict.level == "indistinguishable" and found.tasks[0].accuracy == 1.0
    assert found.floor is not None and found.floor.kl > 0
    assert evaluate_images(model, None, held).perplexity.other.value == found.perplexity.other.value
    with pytest.raises(BadRequest, match="other images"):
        evaluate_images(model, ImageBaseline.of(model, held.take(5), noise_floor=False), held)


def test_kl_and_accuracy_are_those_of_the_definition(made_up: Path) -> None:
    held = images("zoo:vit", made_up, 60, "evaluation")
    held = replace(held, labels=torch.randint(10, (60,)))
    one, other = bitwright.load("zoo:vit"), bitwright.load("zoo:vit")
    with torch.no_grad():
        other.classifier.weight.add_(0.05 * torch.randn_like(other.classifier.weight))
    found = evaluate_images(other, one, held, noise_floor=False)
    b, q = (logits(m, held).double().log_softmax(1) for m in (one, other))
    assert found.divergence is not None and found.tasks[0].flips is not None
    assert found.divergence.kl.value == pytest.approx(float(F.kl_div(q, b, log_target=True, reduction="batchmean")), rel=1e-4)
    right = [(x.argmax(1) == held.labels) for x in (b, q)]
    assert found.tasks[0].accuracy == pytest.approx(float(right[1].float().mean()))
    assert found.tasks[0].flips.flips == pytest.approx(float((right[0] != right[1]).float().mean()))


def test_the_commands_take_images(made_up: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    out, runner = tmp_path / "out", CliRunner()
    line = ["compress", "zoo:vit", "-o", str(out), "--recipe", "gptq", "--bits", "4", "--samples", "20", "--data", str(made_up)]
    done = runner.invoke(app, [*line, "--ignore", "re:vit\\.layers\\.[1-5]\\..*"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    line = [
        "evaluate",
        str(out),
        "--against",
        "zoo:vit",
        "--data",
        str(made_up),
        "--samples",
        "60",
        "--json",
        str(tmp_path / "s.json"),
    ]
    done = runner.invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0 and "top-1" in done.output
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["divergence"]["kl"]["value"] > 0 and scores["tasks"][0]["n"] == 60
    assert (out / "report.html").is_file()


@pytest.mark.acceptance
@pytest.mark.skipif(not CIFAR, reason="BITWRIGHT_CIFAR10 names no folder with train.npz and test.npz")
@pytest.mark.parametrize("model", ["zoo:resnet20", "zoo:vit"])
def test_on_what_they_were_trained_for(model: str) -> None:
    """All blocks, real images: 8 bits keep every answer that the noise floor keeps, 4 bits by GPTQ beat nearest."""
    data, held = images(model, f"{CIFAR}/train.npz", 128), images(model, f"{CIFAR}/test.npz", 2000, "evaluation")
    base, found = ImageBaseline.of(bitwright.load(model), held), {}
    for name, bits in (("gptq", 8), ("gptq", 4), ("rtn", 4)):
        small, _ = bitwright.compress(model, replace(recipes.get(name)(bits=bits), layout=Layout(1, None)), data, batch=32)
        found[name, bits] = evaluate_images(small, base, held)
    kl = {key: e.divergence.kl for key, e in found.items() if e.divergence is not None}
    assert kl["gptq", 8].high < kl["gptq", 4].low and kl["gptq", 4].high < kl["rtn", 4].low
    delta = found["gptq", 8].tasks[0].flips
    assert delta is not None and abs(delta.delta.value) < 0.005
