"""What the tests share: one thread, fixed seeds, every part of the index in its important variants, problems, tiny models.

A test that names `grid`, `layout`, `rounding`, `correction`, `allocation`, `stat` or `recipe` among its arguments runs once for
every variant of every such part in bitwright/index.py (variants.py); `few_grids` are the small selection for the slow laws, and
with a `rounding` a third of all pairs.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sparing
import torch
from torch import Tensor

sparing.install()  # for all that is imported from here on, bitwright above all

from variants import label, pairs, variants  # noqa: E402

from bitwright import index  # noqa: E402

torch.set_num_threads(1)
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any test imports one

LAYOUTS = ((1, None), (1, 16), (None, 1), (4, 8), (None, None))

ROOMS = {
    "grid": "grids",
    "scale": "scales",
    "rounding": "rounding",
    "correction": "corrections",
    "allocation": "allocation",
    "recipe": "recipes",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    marked = {a for m in metafunc.definition.iter_markers("parametrize") for a in str(m.args[0]).replace(" ", "").split(",")}
    if {"rounding", "few_grids"} <= set(names):
        found = pairs()
        metafunc.parametrize("rounding, few_grids", found, ids=["-".join(map(label, pair)) for pair in found])
        marked |= {"rounding", "few_grids"}
    for name, room in ROOMS.items():
        if name in names and name not in marked:
            found = variants(room)
            metafunc.parametrize(name, found, ids=map(label, found))
    if "few_grids" in names and "few_grids" not in marked:
        found = variants("grids", few=True)
        metafunc.parametrize("few_grids", found, ids=map(label, found))
    if "layout" in names and "layout" not in marked:
        found = [index.resolve("layouts", "layout")(*block) for block in LAYOUTS]
        metafunc.parametrize("layout", found, ids=[f"{x.rows}x{x.cols}" for x in found])


# --- one thread, fixed seeds, no endless loops -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    sparing.seen.clear()


@pytest.fixture
def within() -> Callable[[float], Any]:
    """`with within(5): ...` fails where the inside takes longer: an endless loop is a failure, not a hang."""

    @contextmanager
    def limit(seconds: float) -> Iterator[None]:
        def stop(*_: Any) -> None:
            raise TimeoutError(f"not done after {seconds} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return limit


# --- problems and models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def problem() -> Callable[..., tuple[Tensor, Tensor]]:
    """(W, H): heavy-tailed weights, second moments of a power-law spectrum with a few input channels far above the others."""

    def make(
        out: int = 24, inp: int = 32, seed: int = 0, spectrum: float = 1.0, loud: int = 2, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        gen = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)  # noqa: E731
        W = draw(out, inp) * (0.3 + draw(out, inp).abs()) / 10
        basis, _ = torch.linalg.qr(draw(inp, inp))
        root = basis * torch.arange(1, inp + 1, dtype=torch.float64) ** (-spectrum / 2)
        H = root @ root.T
        channels = torch.randperm(inp, generator=gen)[:loud]
        gain = torch.ones(inp, dtype=torch.float64)
        gain[channels] = 8.0
        return W.to(dtype), (gain[:, None] * H * gain).to(dtype)

    return make


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random Llama on disk, made once per configuration. `dtype`: of the files; `shard`: largest file; more: LlamaConfig."""
    made: dict[str, Path] = {}

    def make(dtype: torch.dtype = torch.float32, shard: str = "1GB", **changes: Any) -> Path:
        key = f"{dtype}{shard}{sorted(changes.items())}"
        if key not in made:
            from transformers import LlamaConfig, LlamaForCausalLM

            small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**{**small, **heads, "tie_word_embeddings": False, **changes}))
            for name, p in model.named_parameters():  # as initialised the blocks hardly matter: make them
                p.data.mul_(1 + torch.rand_like(p) if "norm" in name else 5)
            made[key] = tmp_path_factory.mktemp("llama")
            model.to(dtype).save_pretrained(made[key], max_shard_size=shard)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tokens() -> Callable[..., Any]:
    """Random calibration windows for `tiny_llama`."""

    def make(rows: int = 6, length: int = 24, vocabulary: int = 96, seed: int = 0) -> Any:
        from bitwright.calibrate.data import Windows

        ids = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
        zeros = torch.zeros(rows, dtype=torch.long)
        return Windows(ids, ("noise",), zeros, ("noise",) * rows, zeros, "noise", "calibration", seed)

    return make


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random residual network of three blocks on disk."""
    from bitwright.zoo.resnet import ResNetForImageClassification
    from bitwright.zoo.resnet_config import ResNetConfig

    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(width=8, depth=1, image_size=12, num_labels=5))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(0, 0.3)
    where = tmp_path_factory.mktemp("resnet")
    model.save_pretrained(where)
    return where


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Any]:
    """Smooth random images for `tiny_resnet`."""

    def make(rows: int = 32, seed: int = 0) -> Any:
        from bitwright.calibrate.images import Images

        gen = torch.Generator().manual_seed(seed)
        coarse = torch.rand(rows, 3, 4, 4, generator=gen)
        pixels = 2 * torch.nn.functional.interpolate(coarse, 12, mode="bilinear") - 1
        return Images(pixels, torch.full((rows,), -1), "smooth noise", "calibration", seed)

    return make


@pytest.fixture(scope="session")
def linears() -> list[tuple[Tensor, Tensor]]:
    """(W, H) of every linear of zoo:lm, H from 16 calibration windows through the float model."""
    import bitwright
    from bitwright import zoo
    from bitwright.calibrate.stats import Gram

    model = bitwright.load(zoo.path("lm"))
    found = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    grams = [Gram(m.in_features) for m in found]
    for module, gram in zip(found, grams):
        module.register_forward_pre_hook(lambda _, inputs, gram=gram: gram.add(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        for rows in bitwright.calibration("zoo:lm", samples=16).ids.split(4):
            model(rows)
    return [(m.weight.detach().float(), gram.value()) for m, gram in zip(found, grams)]
