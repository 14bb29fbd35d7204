"""The only switch between implementations of a loop. Method files call the entries here and never name a device.

Each entry tries its implementations in order; one declines by returning None (another device, a grid it has no form for).
The reference comes last and takes everything. A test forces one by name: `with only("reference"): ...`.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.coder import Coder
from bitwright.kernels.packed import Packed

SWEEP = {  # name -> module, and the kind of device it is imported for at all (None: any)
    "triton": ("bitwright.kernels.triton.sweep", "cuda"),
    "numba": ("bitwright.kernels.numba.sweep", "cpu"),
    "reference": ("bitwright.kernels.reference", None),
}
MATMUL = {
    "triton": ("bitwright.kernels.triton.matmul", "cuda"),
    "numba": ("bitwright.kernels.numba.matmul", "cpu"),
    "reference": ("bitwright.kernels.reference", None),
}
NEAREST = {
    "numba": ("bitwright.kernels.numba.nearest", "cpu"),
    "reference": ("bitwright.kernels.reference", None),
}
KMEANS = {
    "numba": ("bitwright.kernels.numba.kmeans", "cpu"),
    "reference": ("bitwright.kernels.reference", None),
}
ROUNDED = {  # these four are called by kernels/scanning.py, which checks what they take
    "triton": ("bitwright.kernels.triton.round", "cuda"),
    "numba": ("bitwright.kernels.numba.round", "cpu"),
    "reference": ("bitwright.kernels.scan_reference", None),
}
SCAN = {
    "triton": ("bitwright.kernels.triton.scan", "cuda"),
    "numba": ("bitwright.kernels.numba.scan", "cpu"),
    "reference": ("bitwright.kernels.scan_reference", None),
}
SCORE = {
    "numba": ("bitwright.kernels.numba.score", "cpu"),
    "reference": ("bitwright.kernels.scan_reference", None),
}
HAMMING = {
    "triton": ("bitwright.kernels.triton.scan", "cuda"),
    "numba": ("bitwright.kernels.numba.hamming", "cpu"),
    "reference": ("bitwright.kernels.scan_reference", None),
}
NIBBLES = {  # called by embed/book.py
    "numba": ("bitwright.kernels.numba.nibbles", "cpu"),
    "reference": ("bitwright.kernels.nibbles_reference", None),
}
ENTRIES = {
    "gptq_block": SWEEP,
    "descent": SWEEP,
    "matmul": MATMUL,
    "nearest_sum": NEAREST,
    "kmeans": KMEANS,
    "rounded": ROUNDED,
    "scan": SCAN,
    "score": SCORE,
    "hamming": HAMMING,
    "coded": NIBBLES,
    "decoded": NIBBLES,
}
_forced: ContextVar[str | None] = ContextVar("forced", default=None)


@contextmanager
def only(name: str) -> Iterator[None]:
    """Force one implementation; it raises NotImplementedError where that one declines."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def call(entry: str, *args: Any) -> Any:
    forced = _forced.get()
    for name, (module, device) in ENTRIES[entry].items():
        if name == forced or (forced is None and device in (None, args[0].device.type) and there(name)):
            result = getattr(import_module(module), entry)(*args)
            if result is not None:
                return result
    raise NotImplementedError(f"{forced or 'no implementation'} does not do {entry} on these arguments")


@cache
def there(name: str) -> bool:
    """Whether an implementation's library is installed; that Triton is not is said once, for then a GPU runs the slow loops."""
    if name != "triton" or find_spec("triton") is not None:
        return True
    warnings.warn("Triton is not installed: GPU work runs in plain torch, slowly; install triton.", stacklevel=2)
    return False


def gptq_block(
    block: Float[Tensor, "out b"], U: Float[Tensor, "b b"], coder: Coder, cols: Ints[Tensor, "b"], widths: Sequence[int]
) -> tuple[Float[Tensor, "out b"], Float[Tensor, "out b"]]:
    """One lazy block of GPTQ, columns in the order `cols`, `widths` of them together: values, and errors e to push to the right."""
    return call("gptq_block", block, U, coder, cols, widths)


def descent(
    W: Float[Tensor, "out inp"],
    Q: Float[Tensor, "out inp"],
    R: Float[Tensor, "out inp"],
    H: Float[Tensor, "inp inp"],
    coder: Coder,
    relaxed: bool,
) -> tuple[Float[Tensor, "out inp"], Float[Tensor, "out inp"]]:
    """One sweep of coordinate descent over all columns: Q and R = (W - Q) H after it. Relaxed: columns stay unsnapped."""
    return call("descent", W, Q, R, H, coder, relaxed)


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"]:
    """x W^t in the type of x."""
    return call("matmul", x, packed)


def nearest_sum(x: Float[Tensor, "n w"], first: Float[Tensor, "i w"], last: Float[Tensor, "j w"]) -> Ints[Tensor, "n"]:
    """i + j * len(first) of the sum first_i + last_j nearest to x (fp64), exactly; the lowest among equals."""
    return call("nearest_sum", x, first, last)


def kmeans(x: Float[Tensor, "g n"], price: Float[Tensor, "g n"], count: int) -> Float[Tensor, "g count"]:
    """The `count` points of every group that leave the least priced squared error, ascending. fp64; `x` ascends."""
    return call("kmeans", x, price, count)
