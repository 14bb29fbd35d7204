"""safetensors files with the rights of any other new file; those that the library writes are their owner's alone."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors
from torch import Tensor


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    path.touch()
    mode = path.stat().st_mode  # asking for the umask would change it for other threads
    safetensors.save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)
