"""Which devices there are, and when they are done: the one place that asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bitwright.errors import BadRequest


def available(name: str) -> torch.device:
    """`auto`, `cpu` or the name of an accelerator. Raises BadRequest where it is not there."""
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return present or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadRequest(f"There is no kind of device called {name!r}; use auto, cpu or cuda.") from None
    if device.type != "cpu" and (present is None or present.type != device.type):
        raise BadRequest(f"The device {name!r} is not available here; use --device cpu, or install torch for it.")
    return device


def memory_left(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; a great many where the machine does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 2**62)


def finish() -> None:
    """Wait for what an accelerator, if there is one, was given to do: before a clock is read."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@contextmanager
def coarse_products() -> Iterator[None]:
    """Products of fp32 matrices on NVIDIA's tensor cores: operands lose 13 bits of mantissa, sums do not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
