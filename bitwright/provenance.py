"""Where a result was made: versions, machine, and the most memory the work took."""

import platform
import resource
import sys
from pathlib import Path

import torch

import bitwright
from bitwright.terms.base import Json


def here() -> dict[str, Json]:
    return {
        "bitwright": bitwright.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """The most bytes this process was resident with. On Linux not by getrusage, whose figure begins with that of the parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
