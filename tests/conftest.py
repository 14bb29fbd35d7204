"""What the tests share: one thread, fixed seeds, every part of the index in its important variants, problems, tiny models.

A test that names `grid`, `layout`, `rounding`, `correction`, `allocation`, `stat` or `recipe` among its arguments runs once for
every variant of every such part in bitwright/index.py; `few_grids` are the small selection for the slow laws. A part added
later runs as its default constructor makes it, until somebody names its variants in VARIANTS.
"""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright import index

torch.set_num_threads(1)
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any test imports one

SIZES = (2, 3, 4, 5, 9, 16, 256)
LAWLESS = {  # parts that the laws of their room do not bind, and why
    "ggml": "a peer's habit: its codes are nearest to points other than the stored ones; tests/cards/kquants.py has its identity",
}
LAYOUTS = ((1, None), (1, 16), (None, 1), (4, 8), (None, None))


# --- the parts ---------------------------------------------------------------------------------------------------------------


def parts(room: str) -> dict[str, Any]:
    return {name: index.resolve(room, name) for name in index.PARTS[room]}


@cache
def variants(room: str, few: bool = False) -> tuple[Any, ...]:
    """Every part of a room in its variants."""
    made = {"grids": few_grids if few else grids, "scales": scales, "rounding": roundings, "corrections": corrections}
    made["recipes"] = recipes
    named: dict[str, list[Any]] = made.get(room, dict)()
    kinds = {n: index.load(p) for n, p in index.RECIPES.items()} if room == "recipes" else parts(room)
    return tuple(v for name, kind in kinds.items() if name not in LAWLESS for v in (named.get(name) or [kind()]))


def scales() -> dict[str, list[Any]]:
    floats, power, second = (index.resolve("scales", name) for name in ("float", "e8m0", "second-level"))
    return {
        "float": [*(floats(name) for name in ("float16", "bfloat16", "float32")), floats("float16", True)],
        "e8m0": [power(rule) for rule in ("up", "floor", "even", "ceil")],
        "second-level": [second(64, 2), second(128, "row"), second(64, 1, signed=True)],
    }


def fits() -> list[Any]:
    """Those that place any grid; searches in coarse steps: the laws hold for any, and these are four times faster."""
    kinds = [kind for kind in parts("fits").values() if not hasattr(kind, "refuses")]
    return [kind(steps=25) if "steps" in {f.name for f in dataclasses.fields(kind)} else kind() for kind in kinds]


def grids() -> dict[str, list[Any]]:
    by_all = fits()
    integer, offset, table, trits = (index.resolve("grids", name) for name in ("integer", "offset", "table", "trit-planes"))
    second, nested = index.resolve("scales", "second-level"), index.resolve("grids", "nested")
    tables = index.load("bitwright.grids.table:TABLES")
    ragged, compand = index.resolve("grids", "ragged"), index.resolve("grids", "compand")
    points, means = index.resolve("grids", "points"), index.resolve("fits", "kmeans-dp")
    squares, floats = index.resolve("fits", "least-squares"), index.resolve("scales", "float")
    dual = index.resolve("grids", "dual-binary")
    book, sums = index.resolve("grids", "codebook"), index.resolve("grids", "additive")
    minimal = index.resolve("fits", "hqq-minimum")()
    least, coarse = squares(), squares("imatrix", 8, 2)
    turned = second(64, 2, signed=True)
    return {
        "integer": [
            *(integer(n, symmetric, by) for (n, symmetric), by in zip(product(SIZES, (False, True)), cycle(by_all))),
            *(
                integer(5, symmetric, by, scale)
                for by, symmetric, scale in zip(cycle(by_all), cycle((False, True)), variants("scales"))
            ),
            *(integer(3, by=by) for by in by_all),
            *(integer(8, True, by, turned) for by in (least, coarse, squares("even"))),
            *(integer(16, True, least, scale) for scale in (floats(), floats(signed=True), second(64, "row"))),
            *(integer(15, True, coarse, index.resolve("scales", name)()) for name in ("e8m0", "e4m3")),
        ],
        "table": [
            *(table(name, by) for name, by in zip(tables, cycle(by_all))),
            *(table(name, polish=3) for name in tables),
            *(
                table(name, by, scale=scale)
                for name, by, scale in zip(cycle(("e2m1", "nf4")), cycle(by_all[::-1]), variants("scales"))
            ),
            table("ternary", by_all[-1], 3),
        ],
        "offset": [
            *(offset(n, by) for n, by in zip((4, 16, 32), cycle(by_all))),
            offset(16, by_all[-1], second(64, 2), second(64, 2, least=0)),
            *(offset(n, by, second(n, 2), second(n, 2, least=0)) for n, by in ((4, least), (16, coarse), (16, squares("even")))),
            offset(16, least),
            *(offset(n, minimal, minimum=floats(signed=signed)) for n, signed in ((4, False), (16, True))),
            offset(16, coarse, minimum=floats(signed=True)),
        ],
        "menu": [index.resolve("grids", "menu")(by=by) for by in by_all[:3]],
        "nested": [nested(by=by_all[1]), nested(shared=True), nested(4, (4, 2), False, by=by_all[2])],
        "trit-planes": [trits(2), trits(3), trits(2, weighted=True), trits(1), trits(2, scale=variants("scales")[1])],
        "dual-binary": [dual(), dual(by_all[1], 3)],
        "points": [points(), points(4, means("diagonal"), "float32"), points(16, means("even")), points(8, by_all[1])],
        "ragged": [ragged(), ragged(1.0), ragged(2.4, 5), ragged(4.0, whole=True), ragged(0.5), ragged(2.4, search=True)],
        "codebook": [book(16, 2), book(8, 4, scale=floats(), weighted=True), book(256, 8, floats("float32"), rounds=5)],
        "additive": [sums(2, 8, 4), sums(3, 4, 2, weighted=True), sums(2, 16, 8, None), sums(1, 16, 2)],
        "compand": [compand(), compand(1.0, 2), compand(3.0, points="lloyd-max"), compand(2.5, search=False), compand(0.5)],
    }


def few_grids() -> dict[str, list[Any]]:
    integer, offset, table, trits = (index.resolve("grids", name) for name in ("integer", "offset", "table", "trit-planes"))
    imatrix = index.resolve("fits", "imatrix")(steps=25)
    second, e4m3 = (index.resolve("scales", name) for name in ("second-level", "e4m3"))
    return {
        "integer": [integer(4), integer(9, True), integer(8, by=imatrix), integer(16, scale=second(64, "row"))],
        "offset": [offset(8), offset(4, scale=second(16, "row"), minimum=second(16, "row", least=0))],
        "table": [table("nf4"), table("ternary", polish=2), table("roots4"), table("e2m1", scale=e4m3())],
        "trit-planes": [trits(2)],
        "codebook": [index.resolve("grids", "codebook")(16, 2)],
        "additive": [index.resolve("grids", "additive")(2, 8, 4)],
        "ragged": [index.resolve("grids", "ragged")(2.4)],
        "points": [index.resolve("grids", "points")(2)],  # of sixteen numbers: with many points nothing is left to compensate
        "compand": [index.resolve("grids", "compand")(2.0, points="lloyd-max", search=False)],
    }


def roundings() -> dict[str, list[Any]]:
    nearest, gptq, ease, outlier, chain = (
        index.resolve("rounding", name) for name in ("nearest", "gptq", "quantease", "quantease-outlier", "chain")
    )
    stack = index.resolve("rounding", "bitstack")
    baq = index.resolve("rounding", "baq")
    mixed, fine = index.resolve("rounding", "mixed-columns"), index.resolve("grids", "integer")(256)
    layerwise = index.resolve("rounding", "layerwise")
    return {
        "layerwise": [  # one of each kind of variable; tests/laws/joint.py has them all
            layerwise(j) for j in joints(fixed=True, steps=3) if type(j).__name__ in ("AdaRound", "FlexRound", "PvTuning")
        ],
        "bitstack": [stack(12, 2), stack(12), stack(3, 2, first=gptq())],
        "gptq": [gptq(order, groups) for order, groups in product(("descending", "natural", "group-aware"), ("static", "dynamic"))]
        + [gptq(block=8), gptq.llm_compressor(), gptq.gptqmodel()],
        "quantease": [ease(iters=8), ease(iters=3, relax_until=0)],
        "quantease-outlier": [outlier(0.02, iters=4), outlier(0.0), outlier(0.02, iters=2, first=nearest())],
        "aqlm": [index.resolve("rounding", "aqlm")(4), index.resolve("rounding", "aqlm")(3, beam=3)],
        "baq": [baq(), baq(order="descending", runs=2, last=chain((gptq(), ease(iters=2))))],
        "cvxq": [index.resolve("rounding", "cvxq")(), index.resolve("rounding", "cvxq")("gram")],
        "spqr-gptq": [index.resolve("rounding", "spqr-gptq")(*given) for given in ((0.02,), (0.0, "natural"))],
        "dense-and-sparse": [
            index.resolve("rounding", "dense-and-sparse")(*shares) for shares in ((0.01, 0.02), (0.02, 0.05), (0.0, 0.0))
        ],
        "mixed-columns": [  # the laws compare with the coder's own grid, so what replaces it is finer
            mixed(by="hessian", block=4, high=fine, group=8, outliers=0.02),
            *(mixed(share, by, 4, fine, 8) for share, by in ((0.25, "range"), (0.5, "input"), (0.25, "weight"), (0.0, "range"))),
        ],
        "chain": [chain((gptq(), ease(iters=3))), chain((nearest(), ease(iters=2), gptq("natural"))), chain((nearest(),))],
    }


def joints(fixed: bool, steps: int = 12) -> list[Any]:
    """Every joint rounding for a few steps, started from its own; `fixed`: the grids' parameters stay."""
    still = {"ranges": False, "range_rate": 0.0, "book_rate": 0.0, "budget": 0.0} if fixed else {"budget": 0.4}
    found = []
    for kind in parts("joint").values():
        made = kind()
        own = {name: value for name, value in still.items() if hasattr(made, name)}
        found.append(dataclasses.replace(made, training=dataclasses.replace(made.training, steps=steps), **own))
    return found


def corrections() -> dict[str, list[Any]]:
    lorc, outliers = index.resolve("corrections", "lorc"), index.resolve("corrections", "outliers")
    return {
        "lorc": [lorc(4), lorc(4, whiten=False), lorc(2, dtype="bfloat16"), lorc(4, dtype="float32"), lorc(1000)],
        "outliers": [outliers(), outliers(0.05), outliers(0.05, by_output=True), outliers(1.0)],
    }


def recipes() -> dict[str, list[Any]]:
    """Recipes as their defaults make them, but on groups that tiny matrices have."""
    return {name: [smaller(index.load(path)())] for name, path in index.RECIPES.items()}


def smaller(recipe: Any) -> Any:
    few = tuple(dataclasses.replace(c, rank=2) if hasattr(c, "rank") else c for c in recipe.corrections)
    return dataclasses.replace(recipe, layout=dataclasses.replace(recipe.layout, cols=32), corrections=few)


def label(part: Any) -> str:
    """A part by its index name and what differs from the defaults."""
    if callable(part) and not dataclasses.is_dataclass(part):
        return part.__name__
    if isinstance(part, tuple):
        return "+".join(map(label, part)) or "none"
    if not dataclasses.is_dataclass(part):
        return str(part)
    if type(part).__name__ == "Recipe":
        return part.name
    given = [(f, getattr(part, f.name)) for f in dataclasses.fields(part)]
    told = [f"{f.name}={label(v)}" for f, v in given if f.default is dataclasses.MISSING or f.default != v]
    return f"{index.name_of(type(part))}({','.join(told)})"


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
    for name, room in ROOMS.items():
        if name in names and name not in marked:
            found = variants(room)
            metafunc.parametrize(name, found, ids=map(label, found))
    if "few_grids" in names:
        found = variants("grids", few=True)
        metafunc.parametrize("few_grids", found, ids=map(label, found))
    if "layout" in names and "layout" not in marked:
        found = [index.resolve("layouts", "layout")(*block) for block in LAYOUTS]
        metafunc.parametrize("layout", found, ids=[f"{x.rows}x{x.cols}" for x in found])


# --- one thread, fixed seeds, no endless loops -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
