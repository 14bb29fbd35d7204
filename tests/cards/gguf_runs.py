"""Card formats, section 3: llama.cpp itself runs our files, and we read what it quantizes.

Its CPU kernels round the inputs of every product: to 8 bits for block types (in groups of 32, for K-quants and trits of 256), to
BF16 and F16 for these, not at all for F32. So F32 must agree to the last digits, and what block types differ by is bounded by the
size of that rounding. The cache of keys and values is F32 here.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bitwright
from bitwright import zoo
from bitwright.calibrate.text import text_windows
from bitwright.checkpoint import open_checkpoint
from bitwright.errors import BadRequest
from bitwright.export.base import Model, Opened, export, format_of
from bitwright.export.gguf import llama
from bitwright.export.gguf.blocks import BLOCKS
from bitwright.export.gguf.matrices import GRIDS
from bitwright.export.gguf.model import FILE, Gguf
from bitwright.export.hf import beside, configuration
from bitwright.job import compress
from bitwright.layout import Layout
from bitwright.progress import silent
from bitwright.recipe import Recipe, Rule
from bitwright.terms.base import decode

pytestmark = pytest.mark.acceptance
cpp = pytest.importorskip("llama_cpp")

# how far the logits may be apart, relative: where inputs are rounded in groups of 256, and where trits have left little of a model
MOST = {**dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), 0.06), "TQ1_0": 0.3, "TQ2_0": 0.3}


@pytest.fixture(scope="module")
def windows() -> Tensor:
    ids: Tensor = text_windows("zoo:lm", "stdlib", 6, 192, "evaluation").ids
    return ids


def engine(path: Path) -> Any:
    return cpp.Llama(
        str(path), n_ctx=512, n_batch=512, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1, type_k=0, type_v=0
    )


def theirs(running: Any, ids: Tensor) -> Tensor:
    found = []
    for row in ids:
        running.reset()
        running.eval(row.tolist())
        found.append(torch.from_numpy(np.array(running.scores[: len(row)])))
    return torch.stack(found)


def ours(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def perplexity(logits: Tensor, ids: Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())


def divergence(a: Tensor, b: Tensor) -> float:
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def both(a: Tensor, b: Tensor, ids: Tensor) -> str:
    return f"perplexity {perplexity(a, ids):.4f} and {perplexity(b, ids):.4f}, KL {divergence(a, b):.1e}"


def greedy(running: Any, start: list[int], count: int) -> list[int]:
    running.reset()
    steps = running.generate(start, temp=0.0, top_k=1, repeat_penalty=1.0)
    return [next(steps) for _ in range(count)]


def plausible(model: Any, start: list[int], told: list[int], tolerance: float) -> bool:
    """Whether every token of a text is the one that our model likes most, within a tolerance on its logits."""
    logits = ours(model, torch.tensor([start + told]))[0, len(start) - 1 : -1]
    return bool((logits.amax(1) - logits[torch.arange(len(told)), told] <= tolerance).all())


def floats(root: Path, dtype: torch.dtype) -> Opened:
    source = open_checkpoint(root)
    kept = {name: (source.shapes[name], dtype) for name in source.shapes}
    model = Model(configuration(root), {}, kept, companions=beside(root))
    return Opened(model, lambda _: (), lambda name: source.tensor(name).to(dtype), [])


@pytest.fixture
def show(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return say


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-8), (torch.float16, 1e-5), (torch.bfloat16, 1e-3)])
def test_models_that_are_not_quantized_agree(dtype: torch.dtype, most: float, windows: Tensor, tmp_path: Path, show: Any) -> None:
    export(floats(zoo.path("lm"), dtype), Gguf(), tmp_path, silent)
    model, running = bitwright.load(tmp_path), engine(tmp_path / FILE)
    a, b = ours(model, windows), theirs(running, windows)
    show(f"{dtype}: {both(a, b, windows)}, largest difference {(a - b).abs().max():.1e}")
    assert divergence(a, b) < most and perplexity(b, windows) == pytest.approx(perplexity(a, windows), rel=3e-4)
    if dtype == torch.float32:
        assert (a - b).abs().max() < 1e-3
        for start in (row[:32].tolist() for row in windows):
            assert plausible(model, start, greedy(running, start, 32), 1e-3)


@pytest.mark.parametrize("name", GRIDS)
def test_every_type_runs(name: str, windows: Tensor, tmp_path: Path, show: Any) -> None:
    recipe = Recipe(GRIDS[name], Layout(1, BLOCKS[name].group), head=name == "Q6_K")  # one with a compressed, tied embedding
    compress("zoo:lm", recipe, out=tmp_path / "native")
    source = format_of(tmp_path / "native").open(tmp_path / "native")  # type: ignore[union-attr]
    (tmp_path / "out").mkdir()
    export(source, Gguf("TQ2_0" if name == "TQ2_0" else "TQ1_0"), tmp_path / "out", silent)
    model, running = bitwright.load(tmp_path / "out"), engine(tmp_path / "out" / FILE)
    a, b = ours(model, windows), theirs(running, windows)
    miss = float((a - b).norm() / (a - a.mean(-1, keepdim=True)).norm())
    starts = [row[:32] for row in windows[:3]]
    told = [greedy(running, row.tolist(), 32) for row in starts]
    with torch.no_grad():
        more = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
        mine = [model.generate(row[None], **more)[0, 32:].tolist() for row in starts]
    alike = sum(x == y for x, y in zip(told, mine))
    top = float((a.argmax(-1) == b.argmax(-1)).float().mean())
    show(f"{name}: {both(a, b, windows)}, logits {miss:.2%}, same first {top:.1%}, same 32 tokens {alike} of {len(told)}")
    assert miss < MOST.get(name, 0.02)
    assert perplexity(b, windows) == pytest.approx(perplexity(a, windows), rel=0.1 if name[0] == "T" else 0.01)
    most = float((a - b).abs().max())
    assert all(plausible(model, row.tolist(), text, most) for row, text in zip(starts, told))


def test_float_matrices_beside_coded_ones(windows: Tensor, tmp_path: Path) -> None:
    recipe = Recipe(GRIDS["Q8_0"], Layout(1, 32), rules=(Rule(r"re:.*mlp.*", ignore=True),))
    model, _ = compress("zoo:lm", recipe, out=tmp_path / "out", form="gguf")
    assert divergence(ours(model, windows), theirs(engine(tmp_path / "out" / FILE), windows)) < 1e-3


def test_text_becomes_the_same_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export(floats(zoo.path("lm"), torch.bfloat16), Gguf(), tmp_path, silent)
    mine, running = AutoTokenizer.from_pretrained(zoo.path("lm"), model_max_length=10**9), engine(tmp_path / FILE)
    samples = [path.read_text("utf-8")[:20000] for path in sorted(Path(bitwright.__file__).parent.rglob("*.py"))]
    odd = [
        "Hello  world\n\n\tnaïve café 日本語 🙂 don't we'll 12345 a1b2  \n x", "<|endoftext|>hi", "  before", "after  ",
        "\r\n\r\n a", "", "é\u0301 \u00a0 x\u2003y", "I'M DON'T", "x\u200by ١٢٣ ½ ²", "\x00\x7f", "a\u0308\u0323 ﷺ 𝔘𝔫𝔦",
    ]  # fmt: skip
    for text in samples + odd:
        assert running.tokenize(text.encode(), add_bos=True, special=True) == mine(text).input_ids, text[:60]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 64},
    "tied": {"tie_word_embeddings": True},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    "llama3 rope": {
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_configurations_mean_the_same(name: str, tiny_llama: Any, tmp_path: Path) -> None:
    root = tiny_llama(hidden_size=128, max_position_embeddings=512, **VARIANTS[name])
    export(floats(root, torch.float32), Gguf(), tmp_path, silent)
    ids = torch.randint(0, 96, (1, 400))
    a, b = ours(bitwright.load(root), ids), theirs(engine(tmp_path / FILE), ids)
    assert (a - b).abs().max() < 1e-3 * a.abs().max()


FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18,
    "TQ1_0": 36, "TQ2_0": 37, "F16": 1, "BF16": 32, "IQ4_XS": 30,
}  # fmt: skip


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("floats")
    export(floats(zoo.path("lm"), torch.float32), Gguf(), out, silent)
    return out / FILE


@pytest.mark.parametrize("name", FILE_TYPES)
def test_files_that_llama_cpp_quantized(name: str, float_file: Path, windows: Tensor, tmp_path: Path, show: Any) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / f"{name}.gguf"
    asked = cpp.llama_model_quantize_default_params()
    asked.ftype, asked.nthread = FILE_TYPES[name], 1
    assert cpp.llama_model_quantize(str(float_file).encode(), str(path).encode(), asked) == 0
    form = format_of(path)
    assert isinstance(form, Gguf)
    if name == "IQ4_XS":
        with pytest.raises(BadRequest, match="type IQ4_XS"):
            form.open(path)
        return
    source = form.open(path)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for place in llama.sizes(llama.configured(source.model.config), "output.weight" in stored).places():
        raw, site = stored[place.stored], place.name.removesuffix(".weight")
        wanted = torch.tensor(gguf.quants.dequantize(raw.data, raw.tensor_type)).view(place.shape)
        got = decode(source.terms(site)) if site in source.model.metas else source.tensor(place.name).float()
        assert torch.equal(got if place.order() is None else got[place.order()], wanted)
    a, b = ours(bitwright.load(path), windows), theirs(engine(path), windows)
    show(f"{name}: {both(a, b, windows)}")
    assert perplexity(b, windows) == pytest.approx(perplexity(a, windows), rel=0.1 if name[0] == "T" else 0.02)
    (tmp_path / "again").mkdir()
    export(source, Gguf(), tmp_path / "again", silent)
