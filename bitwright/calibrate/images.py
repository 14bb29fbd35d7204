"""Images: what a classifier of images is calibrated and judged on, as the model itself wants its pixels.

A source is a `.safetensors` file (`images` uint8 [n, channels, h, w], `labels` int), a `.npy` file (uint8 [n, h, w, channels]
or [n, channels, h, w], no labels), a `.npz` file of encoded images (`jpeg`: all files one after another, `offsets`, `labels`), or a
folder of image files, whose folders are classes. Encoded images need the package pillow.

The halves `calibration` and `evaluation` share no image: the hash of its bytes decides. Pixels are scaled as the model's
preprocessor_config.json says; an image of another size is resized to the model's.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from bitwright.calibrate.data import Split
from bitwright.checkpoint import locate
from bitwright.errors import WRONG, BadRequest, in_a_line

SOURCES = "a .safetensors, .npy or .npz file of images, or a folder of image files"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
Raw = tuple[Sequence[UInt8[Tensor, "channels h w"]], Int[Tensor, "n"] | None]


@dataclass(frozen=True)
class Images:
    """Images as the model takes them, and their classes (-1: not known)."""

    pixels: Float[Tensor, "rows channels h w"]
    labels: Int[Tensor, "rows"]
    name: str
    split: str | None
    seed: int

    @property
    def inputs(self) -> Float[Tensor, "rows channels h w"]:
        return self.pixels

    @property
    def tokens(self) -> int:
        """A quarter of the pixels: patches are fewer, and so are the places of a network that is wide where they are not."""
        return len(self.pixels) * self.pixels[0, 0].numel() // 4

    @property
    def answers(self) -> int:
        return len(self.pixels)

    @property
    def sha256(self) -> str:
        """Hash of the pixels as little-endian float32, row by row."""
        return hashlib.sha256(self.pixels.numpy().astype("<f4").tobytes()).hexdigest()

    def take(self, rows: int) -> "Images":
        """The first images; they are in random order."""
        return self.part(slice(rows))

    def part(self, rows: slice) -> "Images":
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])

    def refusal(self, config: Any) -> str | None:
        side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
        if side is None:
            return "This model takes no images; give --data a text."
        wanted = (channels, *((side, side) if isinstance(side, int) else side))
        if tuple(self.pixels.shape[1:]) != wanted:
            return f"The images are {tuple(self.pixels.shape[1:])} and the model takes {wanted}; draw them for this model."
        return None

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "rows": len(self.pixels), "length": 1, "seed": self.seed}


def images(model: str | Path, source: str | Path, samples: int, split: Split | None = "calibration", seed: int = 0) -> Images:
    """Draw `samples` images of a source for a model; the same arguments and files give the same images.

    Raises:
        BadRequest: an unknown or unreadable source, too few images, or a model that takes none.
    """
    root = locate(str(model))
    config = json.loads((root / "config.json").read_text())
    if "image_size" not in config:
        raise BadRequest(f"{model} takes no images; give --data a text.")
    found, labels = read(Path(source), config.get("label2id", {}))
    half = [i for i, image in enumerate(found) if split in (None, _half(image))]
    name = str(source) if split is None else f"{source}/{split}"
    if len(half) < samples:
        raise BadRequest(f"{name} holds {len(half)} images and {samples} were asked for: ask for fewer --samples, or give more.")
    drawn = [half[i] for i in np.random.default_rng(seed).permutation(len(half))[:samples]]
    pixels = torch.stack([_scaled(found[i], root, config) for i in drawn])
    known = torch.full((len(drawn),), -1) if labels is None else labels[drawn]
    if labels is not None and int(known.max()) >= len(config.get("id2label", [0, 1])):
        raise BadRequest(f"{name} has a label {int(known.max())} that the model has no class for; give data of its classes.")
    return Images(pixels, known, name, split, seed)


def read(path: Path, classes: dict[str, int]) -> Raw:
    """All images of a source as they are, uint8, and their labels. Raises BadRequest where it cannot be read."""
    kinds = {".safetensors": _safetensors, ".npy": _npy, ".npz": _npz}
    if path.is_dir():
        return _folder(path, classes)
    if not path.is_file() or path.suffix not in kinds:
        raise BadRequest(f"there are no images at {str(path)!r}: give {SOURCES}")
    try:
        found, labels = kinds[path.suffix](path)
    except WRONG as error:
        raise BadRequest(f"{path} cannot be read as images ({in_a_line(error)}): give {SOURCES}") from None
    if any(image.dtype != torch.uint8 or image.dim() != 3 for image in found):
        raise BadRequest(f"{path} does not hold images of bytes with channels: give {SOURCES}")
    if labels is not None and len(labels) != len(found):
        raise BadRequest(f"{path} holds {len(found)} images and {len(labels)} labels; write it again.")
    return found, labels


def _safetensors(path: Path) -> Raw:
    with safe_open(path, framework="pt") as file:
        labels = file.get_tensor("labels").long() if "labels" in file.keys() else None  # noqa: SIM118
        return list(file.get_tensor("images")), labels


def _npy(path: Path) -> Raw:
    array = torch.from_numpy(np.load(path))
    return list(array.permute(0, 3, 1, 2) if array.shape[-1] in (1, 3) else array), None


def _npz(path: Path) -> Raw:
    with np.load(path) as file:
        raw, ends = file["jpeg"].tobytes(), file["offsets"].tolist()
        labels = torch.from_numpy(file["labels"].astype(np.int64)) if "labels" in file.files else None
    return [_decoded(raw[a:b]) for a, b in pairwise(ends)], labels


def _folder(path: Path, classes: dict[str, int]) -> Raw:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise BadRequest(f"{path} holds no {', '.join(SUFFIXES)} file: give {SOURCES}")
    named = torch.tensor([classes.get(file.parent.name, -1) for file in files])
    try:
        return [_decoded(file.read_bytes()) for file in files], named if bool((named >= 0).all()) else None
    except WRONG as error:
        raise BadRequest(f"{path} holds a file that is no image ({in_a_line(error)}); remove it.") from None


def _decoded(raw: bytes) -> UInt8[Tensor, "channels h w"]:
    try:
        from PIL import Image
    except ImportError:
        raise BadRequest(
            "encoded images need the package pillow: install bitwright[vision], or give .safetensors or .npy"
        ) from None
    return torch.from_numpy(np.array(Image.open(io.BytesIO(raw)).convert("RGB"))).permute(2, 0, 1)


def _half(image: UInt8[Tensor, "channels h w"]) -> Split:
    odd = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[0] & 1
    return "evaluation" if odd else "calibration"


def _scaled(image: UInt8[Tensor, "channels h w"], root: Path, config: dict[str, Any]) -> Float[Tensor, "channels high wide"]:
    """As the model's preprocessing says; transformers' own defaults (mean and spread 1/2) where it says nothing."""
    path, side = root / "preprocessor_config.json", config["image_size"]
    told = json.loads(path.read_text()) if path.is_file() else {}
    x = image.float()[None]
    size = (side, side) if isinstance(side, int) else tuple(side)
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    if told.get("do_rescale", True):
        x = x * told.get("rescale_factor", 1 / 255)
    if told.get("do_normalize", True):
        mean, spread = (torch.tensor(told.get(key, [0.5] * x.shape[1])) for key in ("image_mean", "image_std"))
        x = (x - mean[:, None, None]) / spread[:, None, None]
    return x[0]
