"""How zoo:resnet20 and zoo:vit were trained: image classifiers on 22,000 images of CIFAR-10, each in minutes on one GPU.

Objective, over augmented images x with mixed labels y (mixup: Zhang et al., 2018; CutMix: Yun et al., 2019):

    L(θ) = (1 - a) CE(y, p_θ(x)) + a t² KL(p_teacher(x; t) || p_θ(x; t))

With `--teacher` a wider network of the same kind, trained by this script and not shipped, sees the very same views
("function matching", Beyer et al., 2022): 22,000 images are too few for a small transformer to learn from labels alone.
SGD with Nesterov momentum for convs, AdamW for the transformer; warm-up, then a cosine to zero; an exponential average of
the weights is what is shipped. Nothing is chosen on the test images: the schedule is fixed and its end is what ships.
The schedule follows steps or seconds, whichever is nearer to its end.

    python -m bitwright.zoo.train_vision resnet --data cifar10 --out teacher --width 64 --seconds 110
    python -m bitwright.zoo.train_vision resnet --data cifar10 --out resnet20 --teacher teacher --seconds 160
    python -m bitwright.zoo.train_vision vit    --data cifar10 --out vit --teacher teacher --seconds 220
    python -m bitwright.zoo.train_vision images --data cifar10 --out images

`--data` holds train.npz and test.npz: `jpeg` (all files one after another), `offsets` (n + 1), `labels`, `classes`. Decoding
them needs pillow. `images` writes the decoded images as safetensors (`images` uint8 [n, 3, 32, 32], `labels` int64).
"""

import argparse
import copy
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from bitwright.calibrate.images import read
from bitwright.saving import save_file
from bitwright.zoo.resnet import ResNetForImageClassification
from bitwright.zoo.resnet_config import ResNetConfig
from bitwright.zoo.vision_card import card

VIT: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 768}
VIT |= {"image_size": 32, "patch_size": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "resnet": {"lr": 0.3, "decay": 5e-4, "batch": 512, "steps": 17_200, "mix": 0.0, "warp": 0.0, "width": 24},
    "vit": {"lr": 1e-3, "decay": 0.05, "batch": 512, "steps": 25_800, "mix": 0.8, "warp": 0.15, "width": 256},
}
SMOOTHING, MATCHING, TEMPERATURE = 0.1, 0.9, 2.0


# ---- data -----------------------------------------------------------------------------------------------------------


def decoded(path: Path) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, "n"], list[str]]:
    """Images, labels and names of the classes of one npz file of JPEGs."""
    images, labels = read(path, {})
    assert labels is not None
    with np.load(path) as file:
        return torch.stack(list(images)), labels, [str(name) for name in file["classes"]]


def pixels(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def views(images: UInt8[Tensor, "n 3 h w"], warp: float) -> Float[Tensor, "n 3 h w"]:
    """Every image shifted by up to four whole pixels and mirrored half of the time; with `warp`, also scaled and turned a
    little, and its brightness and contrast changed. What comes from outside is the mean grey."""
    n, device = len(images), images.device
    side = images.shape[-1]
    draw = lambda *shape: torch.rand(*shape, device=device) * 2 - 1  # noqa: E731
    shift = (torch.randint(-4, 5, (n, 2), device=device) * (2 / side)).float()
    scale, angle = torch.exp(warp * draw(n)), warp * draw(n)
    mirror = draw(n).sign()
    rows = [scale * angle.cos() * mirror, -scale * angle.sin(), scale * angle.sin() * mirror, scale * angle.cos()]
    theta = torch.cat([torch.stack(rows, 1).view(n, 2, 2), shift[:, :, None]], 2)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    x = F.grid_sample(images.float() / 127.5 - 1, grid, mode="bilinear", align_corners=False)
    if warp:
        x = x * torch.exp(2 * warp * draw(n, 1, 1, 1)) + warp * draw(n, 1, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def mixed(x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n classes"], chance: float) -> tuple[Tensor, Tensor]:
    """The batch mixed with itself turned by one: half of the time as a blend, half of the time as a pasted rectangle."""
    if float(torch.rand(())) >= chance:
        return x, y
    share, side = float(torch.rand(())), x.shape[-1]
    if float(torch.rand(())) < 0.5:
        blend = share * x + (1 - share) * x.roll(1, 0)
    else:
        edge = round(side * math.sqrt(1 - share))
        top, left = (int(torch.randint(side - edge + 1, ())) for _ in range(2))
        blend = x.clone()
        blend[:, :, top : top + edge, left : left + edge] = x.roll(1, 0)[:, :, top : top + edge, left : left + edge]
        share = 1 - edge**2 / side**2
    return blend, share * y + (1 - share) * y.roll(1, 0)


# ---- model ----------------------------------------------------------------------------------------------------------


def new_model(kind: str, width: int, classes: list[str]) -> Any:
    """A randomly initialised classifier; convs come with the batch norms that training needs."""
    names: Any = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(**VIT | {"hidden_size": width}, **names))
    model = ResNetForImageClassification(ResNetConfig(width=width, **names))
    for name, conv in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]:
        conv.bias = None
        model.set_submodule(name, nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)))
    return model


@torch.no_grad()
def folded(model: Any) -> Any:
    """The same function with every batch norm multiplied into the conv before it, fp32, on the CPU."""
    model = copy.deepcopy(model).cpu().float().eval()
    for name, pair in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Sequential)]:
        conv, norm = cast(tuple[nn.Conv2d, Any], tuple(pair))
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.mul_(gain[:, None, None, None])
        conv.bias = nn.Parameter(norm.bias - norm.running_mean * gain)
        model.set_submodule(name, conv)
    return model


@torch.no_grad()
def measured(model: Any, images: UInt8[Tensor, "n 3 h w"], labels: Int[Tensor, "n"]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy in nats."""
    right, lost = 0.0, 0.0
    for x, y in zip(images.split(1000), labels.split(1000)):
        logits = model(pixel_values=pixels(x)).logits.float()
        right += float((logits.argmax(1) == y).sum())
        lost += float(F.cross_entropy(logits, y, reduction="sum"))
    return right / len(labels), lost / len(labels)


def loss_of(logits: Tensor, y: Tensor, teacher: Tensor | None) -> Tensor:
    """The objective above, the mean over the batch."""
    own = F.cross_entropy(logits, y, label_smoothing=SMOOTHING)
    if teacher is None:
        return own
    told, learnt = ((z.float() / TEMPERATURE).log_softmax(1) for z in (teacher, logits))
    return (1 - MATCHING) * own + MATCHING * TEMPERATURE**2 * F.kl_div(learnt, told, reduction="batchmean", log_target=True)


# ---- training -------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    device, began = torch.device(args.device), time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    images, labels, classes = decoded(args.data / "train.npz")
    tests, truths, _ = decoded(args.data / "test.npz")
    images, labels, tests, truths = (t.to(device) for t in (images, labels, tests, truths))
    if args.device == "cpu":
        tests, truths = tests[:1000], truths[:1000]  # a smoke test
    model = new_model(args.kind, args.width, classes).to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval()
    teacher = None
    if args.teacher:
        teacher = AutoModelForImageClassification.from_pretrained(args.teacher, dtype=torch.bfloat16)
        teacher = teacher.to(device, memory_format=torch.channels_last).eval()
    forward = torch.compile(model) if args.compile else model
    mixture = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    matrices = [w for w in model.parameters() if w.dim() > 1]
    vectors = [w for w in model.parameters() if w.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": args.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if args.kind == "vit":
        optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=device.type == "cuda")
    else:
        optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True, fused=device.type == "cuda")
    pairs = [(a, b) for a, b in zip(average.state_dict().values(), model.state_dict().values()) if a.is_floating_point()]

    log: list[dict[str, float]] = []
    recent: list[Tensor] = []
    order = torch.empty(0, dtype=torch.long, device=device)
    step, progress, next_report, started = 0, 0.0, 250, time.perf_counter()
    print(json.dumps({"decoded": len(images) + len(tests), "seconds": round(started - began, 1)}), flush=True)
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, progress / 0.05 + 1e-3) * 0.5 * (1 + math.cos(math.pi * progress))
        if len(order) < args.batch:
            order = torch.randperm(len(images), device=device)
        chosen, order = order[: args.batch], order[args.batch :]
        truth = F.one_hot(labels[chosen], len(classes)).float()
        x, y = mixed(views(images[chosen], args.warp), truth, args.mix)
        told = None
        if teacher is not None:
            with torch.no_grad():
                told = teacher(pixel_values=x.bfloat16()).logits
        with mixture:
            logits = forward(pixel_values=x).logits
        loss = loss_of(logits.float(), y, told)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0 if args.kind == "vit" else 5.0)
        optimizer.step()
        with torch.no_grad():  # forgets over a fiftieth of the run so far, at most 500 steps
            torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], max(0.002, 50 / (step + 51)))
        recent.append(loss.detach())
        step += 1
        if step % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # the clock must not run ahead of the device
        seconds = time.perf_counter() - started
        progress = max(step / args.steps, seconds / args.seconds)
        if step >= next_report or progress >= 1.0:
            with mixture:
                accuracy, lost = measured(average, tests, truths)
            row = {"step": step, "seconds": round(seconds, 1), "train": round(float(torch.stack(recent).mean()), 4)}
            log.append(row | {"accuracy": round(accuracy, 4), "loss": round(lost, 4)})
            print(json.dumps(log[-1]), flush=True)
            recent.clear()
            next_report = 2 * step
    export(args, average, log, (images, labels), (tests, truths))


def export(args: argparse.Namespace, average: Any, log: list[dict[str, float]], train: Any, test: Any) -> None:
    """Write weights in bf16, configuration, preprocessing, log and card; print what was measured from the written files."""
    folded(average).bfloat16().save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)
    processing = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}}
    processing |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3}
    processing |= {"image_std": [0.5] * 3}
    (args.out / "preprocessor_config.json").write_text(json.dumps(processing, indent=1) + "\n")
    device = test[0].device
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    shipped = AutoModelForImageClassification.from_pretrained(args.out, dtype=torch.float32).to(device).eval()
    accuracy, loss = measured(shipped, *test)
    train_accuracy, _ = measured(shipped, *(t if device.type == "cuda" else t[:1000] for t in train))
    gpu = f"one {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "a CPU"
    settings = {name: getattr(args, name) for name in (*RECIPES[args.kind], "seed", "seconds")}
    settings |= {"smoothing": SMOOTHING, "matching": MATCHING if args.teacher else 0.0, "temperature": TEMPERATURE}
    result = {"accuracy": round(accuracy, 4), "loss": round(loss, 4), "train_accuracy": round(train_accuracy, 4)}
    teacher = json.loads((args.teacher / "training.json").read_text()) if args.teacher else None
    parameters = sum(p.numel() for p in shipped.parameters())
    record = {"settings": settings, "device": gpu, "parameters": parameters, "teacher": teacher and teacher["result"]}
    record |= {"result": result, "log": log}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    size = (args.out / "model.safetensors").stat().st_size
    (args.out / "README.md").write_text(card(args.kind, shipped.config, record, size, (len(train[0]), len(test[0])), teacher))
    print(json.dumps({"out": str(args.out), "parameters": parameters, **result}), flush=True)


def write_images(args: argparse.Namespace) -> None:
    """The decoded images of both files, as the product's `--data` reads them."""
    args.out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        images, labels, _ = decoded(args.data / f"{part}.npz")
        save_file({"images": images, "labels": labels}, args.out / f"{part}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="kind", required=True)
    for kind, recipe in RECIPES.items():
        job = jobs.add_parser(kind, help="train and export")
        job.add_argument("--data", type=Path, required=True)
        job.add_argument("--out", type=Path, required=True)
        job.add_argument("--teacher", type=Path)
        job.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        job.add_argument("--seconds", type=float, default=1e9)
        job.add_argument("--seed", type=int, default=0)
        job.add_argument("--compile", action="store_true")
        for name, default in recipe.items():
            job.add_argument(f"--{name}", type=type(default), default=default)
    job = jobs.add_parser("images", help="decode to safetensors")
    job.add_argument("--data", type=Path, required=True)
    job.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_images(args) if args.kind == "images" else train(args)


if __name__ == "__main__":
    main()
