"""The libraries of the extra `export`, imported when they are needed; refused in one sentence where they are not installed."""

from importlib import import_module
from typing import Any

from bitwright.errors import BadRequest


def library(name: str) -> Any:
    """Raises BadRequest where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise BadRequest(missing(name)) from None


def lacking(name: str) -> str | None:
    """Why a format cannot be written here; None where its library is installed."""
    try:
        import_module(name)
    except ImportError:
        return missing(name)
    return None


def missing(name: str) -> str:
    return f"This format needs the library {name.partition('.')[0]}; pip install 'bitwright[export]'."
