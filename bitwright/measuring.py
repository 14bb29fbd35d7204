"""What the commands measure: a model's behaviour, alone or beside the one it was made from, and its speed."""

from typing import Any

import torch
from transformers import AutoTokenizer

from bitwright import console
from bitwright.checkpoint import locate
from bitwright.evaluation import Baseline, evaluate
from bitwright.evaluation.speed import speeds
from bitwright.job import choose_device, text_windows
from bitwright.loading import load


def measure(model: str, against: str | None, data: str, samples: int, length: int) -> Any:
    text = text_windows(against or model, data, samples, length, "evaluation")
    tokenizer = AutoTokenizer.from_pretrained(locate(against or model))
    with console.progress() as bar:
        base = Baseline.of(load(locate(against)), text, tokenizer, progress=bar) if against else None
        return evaluate(load(locate(model)), base, text, tokenizer, progress=bar)


def measure_speed(model: str, against: str | None, device: str) -> dict[str, dict[str, Any]]:
    """By model: what `Speed` holds. In bf16 on a GPU, in fp32 on the CPU."""
    names, where = [name for name in (against, model) if name is not None], choose_device(device)
    prompt = text_windows(names[0], "stdlib", 1, 128, "evaluation").ids.to(where)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    with console.progress() as bar:
        found = speeds([load(locate(name), dtype).to(where) for name in names], prompt, progress=bar)
    return {name: speed.to_json() for name, speed in zip(names, found)}
