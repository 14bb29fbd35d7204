"""Classifiers of images, measured like language models: KL of the class distribution, its tails, top-1 accuracy, flips.

Every image is a block of its own with one answer, so the bootstrap resamples images, "perplexity" is that of the true class, and
the one task is top-1 over all images. b = baseline, q = compressed, over all classes, in nats:

    KL = sum_c p_b(c) (log p_b(c) - log p_q(c))

The noise floor is the baseline against itself on 64 images: in batches of one, and in bf16 (in fp32 if it is in bf16 already).
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitwright.calibrate.images import Images
from bitwright.errors import BadRequest
from bitwright.evaluation.base import block_mean, resamples
from bitwright.evaluation.divergence import Tokens, summarise
from bitwright.evaluation.evaluation import Data, Evaluation, Floor, Perplexity, Run, Task, verdict
from bitwright.evaluation.flips import compare
from bitwright.evaluation.run import correlation, histogram, perplexity
from bitwright.progress import Progress, silent

FLOOR_IMAGES = 64
Logs = Float[np.ndarray, "images classes"]  # log p(class), fp64


@dataclass(frozen=True)
class ImageBaseline:
    """What a comparison needs of the uncompressed model."""

    images: Images
    logs: Logs
    floor: Floor | None

    @classmethod
    def of(
        cls, model: nn.Module, images: Images, *, batch: int = 64, noise_floor: bool = True, progress: Progress = silent
    ) -> "ImageBaseline":
        """Run the baseline once. Raises BadRequest where the images have no classes, or the model cannot take them."""
        logs = log_classes(model, images, batch, progress)
        return cls(images, logs, _floor(model, images.take(FLOOR_IMAGES), logs[:FLOOR_IMAGES]) if noise_floor else None)


def evaluate_images(
    model: nn.Module,
    against: nn.Module | ImageBaseline | None,
    images: Images,
    *,
    batch: int = 64,
    noise_floor: bool = True,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a classifier; with `against` (the model it was made from, or a baseline of it), also how far it is from that one.

    Raises:
        BadRequest: images without classes, of another shape than the model's, or other classes than the baseline's.
    """
    if isinstance(against, nn.Module):
        against = ImageBaseline.of(against, images, batch=batch, noise_floor=noise_floor, progress=progress)
    if against is not None and against.images.sha256 != images.sha256:
        raise BadRequest("the baseline was made on other images: make it anew on these")
    labels, logs = images.labels.numpy(), log_classes(model, images, batch, progress)
    nll, draws = _of_truth(logs, labels), resamples(len(labels))
    other, _ = perplexity(nll, 0, draws)
    right = float((logs.argmax(1) == labels).mean())
    found = Evaluation(
        data=Data(images.name, images.sha256, images.seed, len(nll), 1, len(nll), 0, {"images": len(nll)}),
        perplexity=Perplexity("images", len(nll), None, other, None, math.nan, None, None, None),
        divergence=None,
        tasks=(Task("top-1", len(nll), logs.shape[1], right, 0.0, None, None),),
        strata=(),
        floor=None,
        verdict=None,
        histogram=None,
        passages=(),
        window_kl=(),
        window_nll_base=(),
        window_nll=tuple(nll[:, 0].tolist()),
    )
    return found if against is None else _beside(found, logs, against, draws)


def _beside(found: Evaluation, logs: Logs, against: ImageBaseline, draws: Float[np.ndarray, "times images"]) -> Evaluation:
    labels, before = against.images.labels.numpy(), against.logs
    if before.shape != logs.shape:
        raise BadRequest(f"{before.shape[1]} and {logs.shape[1]} classes cannot be compared: evaluate against its own original")
    b, q = _of_truth(before, labels), _of_truth(logs, labels)
    tokens = Tokens(
        divergences(before, logs)[:, None], b, q, np.exp(-q) - np.exp(-b), before.argmax(1)[:, None], logs.argmax(1)[:, None]
    )
    distance, floor = summarise(tokens, draws), against.floor
    base, _ = perplexity(b, 0, draws)
    one = np.ones(len(labels))
    flips = compare("top-1", before, logs, labels)
    return replace(
        found,
        perplexity=replace(
            found.perplexity,
            base=base,
            bits_per_byte_base=math.nan,
            ratio=block_mean((q - b)[:, 0], one, draws, "nats"),
            ratio_median=float(np.median(q - b)),
            correlation=correlation(b, q),
        ),
        divergence=distance,
        tasks=(replace(found.tasks[0], mass_base=0.0, flips=replace(flips, holm=flips.p)),),
        floor=floor,
        verdict=verdict(distance.kl.value, floor.kl if floor else None),
        histogram=histogram(tokens.kl),
        window_kl=tuple(tokens.kl[:, 0].tolist()),
        window_nll_base=tuple(b[:, 0].tolist()),
    )


def divergences(b: Logs, q: Logs) -> Float[np.ndarray, "images"]:
    """KL(b || q) of every image, in nats."""
    kl: np.ndarray = (np.exp(b) * (b - q)).sum(1)
    return np.maximum(kl, 0)  # rounding may give -1e-17


@torch.no_grad()
def log_classes(model: nn.Module, images: Images, batch: int, progress: Progress = silent) -> Logs:
    """log p(class) of every image. Raises BadRequest where images have no classes, or a shape that is not the model's."""
    if bool((images.labels < 0).any()):
        raise BadRequest("accuracy needs to know the classes: give images with labels, or in folders named after the classes")
    if why := images.refusal(getattr(model, "config", None)):
        raise BadRequest(why)
    first = next(iter([*model.parameters(), *model.buffers()]))
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    training, parts = model.training, []
    model.eval()
    try:
        for start in range(0, len(images.pixels), batch):
            x: Tensor = images.pixels[start : start + batch].to(first.device, dtype)
            parts.append(model(pixel_values=x).logits.double().log_softmax(1).cpu())
            progress("images", min(start + batch, len(images.pixels)), len(images.pixels))
    finally:
        model.train(training)
    return torch.cat(parts).numpy()


def _of_truth(logs: Logs, labels: np.ndarray) -> Float[np.ndarray, "images 1"]:
    """-log p(true class)."""
    return -np.take_along_axis(logs, labels[:, None], 1)


def _floor(model: nn.Module, images: Images, before: Logs) -> Floor:
    own = next((p.dtype for p in model.parameters()), torch.float32)
    other = torch.float32 if own == torch.bfloat16 else torch.bfloat16
    again = {"batches of 1": (model, 1), str(other)[6:]: (copy.deepcopy(model).to(other), 64)}
    runs, labels = [], images.labels.numpy()
    for name, (run, batch) in again.items():
        logs = log_classes(run, images, batch)
        same = float((logs.argmax(1) == before.argmax(1)).mean())
        flips = float(((logs.argmax(1) == labels) != (before.argmax(1) == labels)).mean())
        runs.append(Run(name, len(labels), float(divergences(before, logs).mean()), same, flips))
    return Floor(max(run.kl for run in runs), tuple(runs))
