"""Type checks paid for once: a call is checked where its arguments differ in kind from those already checked in the same test.

Whether annotations hold is decided by types, dtypes and shapes, and a loop over columns would ask that again thousands of times:
checking every call takes three quarters of the time of the laws. What a call returns may depend on more than the kinds of its
arguments, so of the calls that are alike the first is checked, and every `EVERY`th after it.
"""

from collections.abc import Hashable
from functools import wraps
from types import FunctionType
from typing import Any

import jaxtyping
import numpy as np
from jaxtyping import _decorator
from torch import Tensor

EVERY = 16
seen: dict[Hashable, int] = {}  # calls of each kind; emptied before every test, so that what is checked depends on no other
always = _decorator.jaxtyped


def kind(x: Any) -> Hashable:
    """All that an annotation can tell apart; of a container no more than its first entry, about as much as beartype looks at."""
    if isinstance(x, Tensor | np.ndarray):
        return type(x), x.dtype, tuple(x.shape)
    if isinstance(x, str | bool):  # of which annotations may name the values
        return x
    if isinstance(x, list | tuple):
        return type(x), len(x), kind(x[0]) if x else None
    if isinstance(x, dict):
        return type(x), len(x), tuple(map(kind, next(iter(x.items()), ())))
    return type(x)


def jaxtyped(fn: Any = always.__defaults__[0], **how: Any) -> Any:
    """jaxtyping's decorator, with functions checked sparingly."""
    checked = always(fn, **how)
    if not isinstance(fn, FunctionType):
        return checked

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        asked = fn, tuple(map(kind, args)), tuple((name, kind(x)) for name, x in kwargs.items())
        times = seen.get(asked, 0)
        found = fn(*args, **kwargs) if times % EVERY else checked(*args, **kwargs)
        seen[asked] = times + 1
        return found

    return call


def install() -> None:
    """For all modules imported from here on: the import hook asks for the decorator by this name."""
    jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
