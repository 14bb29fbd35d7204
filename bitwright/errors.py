"""The two ways a run ends early on purpose. Anything else that escapes is a fault of ours (exit code 1)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# what a reader, ours or transformers', stumbles with over a file that is not what it says
WRONG = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ZeroDivisionError, RuntimeError,
    StrictDataclassError,
)  # fmt: skip


def in_a_line(error: Exception) -> str:
    """An error in one line, to stand in a sentence."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")


class BadRequest(Exception):
    """What was asked cannot be done; the message is one sentence with the cause and the remedy (exit code 2)."""


class Decoded(BadRequest, UserWarning):
    """A matrix whose products no kernel takes: a warning, which --strict turns into a refusal."""


class BrokenPromise(Exception):
    """The work was done but a budget or a gate does not hold (exit code 3)."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns "no space left" and its kin into a BadRequest; what is finished stays."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None)
        full = code in (errno.ENOSPC, errno.EDQUOT) or any(w in str(error) for w in ("os error 28", "No space", "os error 122"))
        cause = "the disk is full" if full else str(error)
        raise BadRequest(
            f"Cannot write {path}: {cause}. What is finished is kept; make room and repeat the command with --resume."
        ) from None


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into; it takes the place of `path` when all went well. Processes may do so at once."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
