"""Checkpoint: where weights come from, one tensor at a time; and the skeleton of a model that holds none.

A Hugging Face directory is read tensor by tensor from its safetensors files and never built whole; a model in memory offers
the same interface. Every file's header is checked when the directory is opened, so that a truncated download is refused
before the first hour of work; every weight is checked for NaN and infinity when it is read.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bitwright.errors import WRONG, BadRequest, in_a_line

WEIGHTS, SHARDED = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by name with the configuration of their model. `root` is None for a model in memory."""

    name: str
    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    root: Path | None
    files: Mapping[str, Path]
    loaded: Mapping[str, Tensor]
    stored: Mapping[str, str] = field(default_factory=dict)  # names in the files, where they are others

    def renamed(self, patterns: Sequence[tuple[str, str]]) -> "Checkpoint":
        """The same tensors by the names that the model has for them: regular expressions, and what replaces them."""

        def new(name: str) -> str:
            for pattern, by in patterns:
                name = re.sub(pattern, by, name)
            return name

        if not patterns:
            return self
        names = {new(n): n for n in self.shapes}
        old = {n: self.stored.get(o, o) for n, o in names.items()}
        moved: Any = {part: {new(n): v for n, v in vars(self)[part].items()} for part in ("shapes", "dtypes", "files", "loaded")}
        return replace(self, **moved, stored=old)

    def tensor(self, name: str) -> Tensor:
        """A copy in its own dtype. Raises BadRequest where it holds NaN or infinity."""
        if self.root is None:
            value = self.loaded[name].detach().cpu().clone()
        else:
            with safe_open(self.files[name], framework="pt") as file:
                value = file.get_tensor(self.stored.get(name, name)).clone()
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise BadRequest(
                f"{name} has {bad} NaN or infinite weights; repair or re-download the model (a training run that diverged?)."
            )
        return value

    def below(self, prefix: str) -> dict[str, Tensor]:
        """All tensors of a module, by name relative to it."""
        return {n.removeprefix(f"{prefix}."): self.tensor(n) for n in self.shapes if n.startswith(f"{prefix}.")}

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and the bytes of the weights (of large files: size and 64 samples of 4 KiB)."""
        digest = hashlib.sha256(json.dumps({n: list(s) for n, s in sorted(self.shapes.items())}).encode())
        if self.root is None:
            for name in sorted(self.loaded):
                digest.update(self.loaded[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for path in sorted(set(self.files.values())):
            size = path.stat().st_size
            with path.open("rb") as file:
                for at in range(0, size, 4096) if size < 2**26 else range(0, size - 4096, size // 64):
                    file.seek(at)
                    digest.update(file.read(4096))
        return digest.hexdigest()


def open_checkpoint(model: str | Path | nn.Module) -> Checkpoint:
    """From a hub id, a directory, `zoo:NAME` or a transformers model in memory. Raises BadRequest with the remedy."""
    if isinstance(model, nn.Module):
        if any(".terms." in name for name, _ in model.named_buffers()):
            raise BadRequest("The model is already compressed; give the original, quantizing twice adds the errors.")
        state = model.state_dict(keep_vars=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        kept = {n: t for n, t in state.items() if n not in tied}
        shapes, dtypes = {n: tuple(t.shape) for n, t in kept.items()}, {n: t.dtype for n, t in kept.items()}
        return Checkpoint(type(model).__name__, getattr(model, "config", None), shapes, dtypes, None, {}, kept)
    root = locate(str(model))
    if not (root / "config.json").is_file():
        raise BadRequest(f"{root} holds a GGUF file, which bitwright reads but does not compress; give the model it was made from.")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(root)
    except (OSError, *WRONG) as error:
        why = in_a_line(error)
        raise BadRequest(f"{root}/config.json is no model configuration that transformers knows ({why}); use another.") from None
    if getattr(config, "quantization_config", None):
        raise BadRequest(f"{root} is already quantized; give the original model, quantizing twice adds the errors.")
    shapes, dtypes, files = {}, {}, {}
    for path in weight_files(root):
        for name, shape, dtype in header(path):
            shapes[name], dtypes[name], files[name] = shape, dtype, path
    return Checkpoint(str(model), config, shapes, dtypes, root, files, {})


def locate(name: str) -> Path:
    """The directory of a model, or the GGUF file that it is; hub ids are downloaded by huggingface_hub, which the user asked for
    by naming one."""
    if name.startswith("zoo:"):
        from bitwright import zoo

        return zoo.path(name.removeprefix("zoo:"))
    root = Path(name).expanduser()
    if root.is_dir():
        if not (root / "config.json").is_file() and len(list(root.glob("*.gguf"))) != 1:
            raise BadRequest(f"{name} is not a model directory: it has no config.json; give a Hugging Face model directory.")
        return root
    if root.is_file() and root.suffix == ".gguf":
        return root
    if root.exists():
        raise BadRequest(f"{name} is a file; give the directory that holds config.json and the safetensors files.")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
            return Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:  # many kinds: offline, unknown, gated
            raise BadRequest(
                f"There is no directory {name}, and the hub did not give a model of that id ({type(error).__name__}); "
                "check the spelling and the network, or give a local directory."
            ) from None
    raise BadRequest(f"There is no model at {name}; give a directory, a hub id such as org/name, or zoo:lm.")


def weight_files(root: Path) -> list[Path]:
    if (root / SHARDED).is_file():
        try:
            names = sorted(set(json.loads((root / SHARDED).read_text())["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise ValueError("a shard is not beside its index")
        except WRONG:
            raise BadRequest(f"{root / SHARDED} is damaged; download it again.") from None
        if missing := [n for n in names if not (root / n).is_file()]:
            raise BadRequest(f"{root} lacks {missing[0]} ({len(missing)} of {len(names)} shards missing); download it again.")
        return [root / n for n in names]
    if (root / WEIGHTS).is_file():
        return [root / WEIGHTS]
    hint = " It has .bin files: convert them to safetensors first." if list(root.glob("*.bin")) else ""
    raise BadRequest(f"{root} has no {WEIGHTS} and no {SHARDED}; bitwright reads safetensors only.{hint}")


def header(path: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """Names, shapes and types in a safetensors file; opening it checks that the bytes are all there."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in TYPES:
                    raise BadRequest(f"{name} in {path} has the type {part.get_dtype()}, which is not read yet; convert it.")
                yield name, tuple(part.get_shape()), TYPES[part.get_dtype()]
    except (SafetensorError, OSError) as error:
        raise BadRequest(f"{path} is truncated or damaged ({error}); download it again.") from None


TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside hold no weights, but their buffers (rotary frequencies) are real."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(module, name, None if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def takes_images(config: Any) -> bool:
    """Whether the model of a configuration is a classifier of images; otherwise it is taken for a causal language model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    tables = (auto._model_mapping for auto in (AutoModelForCausalLM, AutoModelForImageClassification))
    text, images = (type(config) in table for table in tables)
    return images and not text


def auto_class(config: Any) -> Any:
    """The transformers class that makes the model of a configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    return AutoModelForImageClassification if takes_images(config) else AutoModelForCausalLM


def skeleton(config: Any) -> nn.Module:
    """The model of a configuration, in fp32, without weights, in evaluation mode."""
    with parameters_on_meta():
        found: nn.Module = auto_class(config).from_config(config, dtype=torch.float32).eval()
        return found


def fill(module: nn.Module, source: Checkpoint, name: str, device: torch.device | None = None) -> None:
    """Give a module without weights its weights, fp32."""
    tensors = {n: t.to(device, torch.float32 if t.is_floating_point() else t.dtype) for n, t in source.below(name).items()}
    wanted = {n for n, _ in module.named_parameters()}
    module.load_state_dict({n: t for n, t in tensors.items() if n in wanted}, strict=False, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def whole(source: Checkpoint) -> nn.Module:
    """The model with all its weights, fp32."""
    model = skeleton(source.config)
    wanted = {n for n, _ in model.named_parameters()}
    model.load_state_dict({n: source.tensor(n).float() for n in source.shapes if n in wanted}, strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    return model.requires_grad_(False)


def size_in_bytes(text: str) -> int:
    """`12MB`, `3.5GiB`, `900kB` or plain bytes. Raises BadRequest otherwise."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise BadRequest(f"{text!r} is not a size; write it like 12MB or 3.5GiB.") from None
