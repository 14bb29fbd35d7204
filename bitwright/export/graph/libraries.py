"""The libraries of the extra `export`, imported when they are needed; refused in one sentence where they are not installed."""

from importlib import import_module
from typing import Any

from bitwright.errors import BadRequest


def library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise BadRequest(f"This format needs the library {missing}; pip install 'bitwright[export]'.") from None
