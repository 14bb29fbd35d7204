"""What a model is calibrated or judged on, drawn from a source: windows of text or images, whichever it takes."""

from pathlib import Path

from bitwright.calibrate.data import Split, Windows
from bitwright.calibrate.images import SOURCES, Images, images
from bitwright.calibrate.text import text_windows
from bitwright.checkpoint import locate, takes_images
from bitwright.errors import BadRequest

WINDOWS, IMAGES = 96, 2000  # on which a model is judged where nobody says how many


def calibration(
    model: str | Path, source: str = "stdlib", samples: int = 128, length: int = 512, seed: int = 0
) -> Windows | Images:
    """Calibration rows of a source: windows of `length` tokens, or images."""
    return drawn(model, source, samples, length, "calibration", seed)


def drawn(model: str | Path, source: str, samples: int | None, length: int, split: Split, seed: int = 0) -> Windows | Images:
    """Rows of a source for a model. Raises BadRequest where it cannot be read, holds too little, or is of the wrong kind."""
    if not of_images(model):
        return text_windows(model, source, samples or WINDOWS, length, split, seed)
    if source == "stdlib":
        raise BadRequest(f"{model} is a classifier of images, and no machine comes with some: give --data {SOURCES}.")
    return images(model, source, samples or IMAGES, split, seed)


def of_images(model: str | Path) -> bool:
    """Whether the model in a directory takes images."""
    from transformers import AutoConfig

    root = locate(str(model))
    return (root / "config.json").is_file() and takes_images(AutoConfig.from_pretrained(root))
