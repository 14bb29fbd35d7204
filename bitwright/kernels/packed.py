"""A coded matrix as it is multiplied: its terms, and the form that a kernel has made of them, once.

    y = sum over terms  x T^t :   codes through the kernel of the device, thin terms (low rank, sparse, columns) as they are

A form takes about as much memory as the stored codes. It is made at the first call on a device and thrown away when the
module's tensors are replaced or moved.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import Decoded
from bitwright.kernels.planes import Plane, Widths, Words, planes
from bitwright.terms.base import Terms, decode
from bitwright.terms.coded import Coded
from bitwright.terms.sign_lowrank import SignLowRank

Made = tuple[Ints[Tensor, "_"] | None, list[Any]]  # the columns that a coded term reads, and its planes as a kernel wants them


@dataclass(eq=False)
class Packed:
    """The terms of one matrix, loaded when asked for (unpacked, they are large); `name` is said where no kernel takes them."""

    load: Callable[[], Terms]
    shape: tuple[int, int]
    name: str = "a layer"
    forms: dict[str, list[Made] | None] = field(default_factory=dict)
    thin: list[Any] = field(default_factory=list)

    def weight(self) -> Float[Tensor, "out inp"]:
        return decode(self.load())

    @property
    def resident(self) -> int:
        """Bytes that a product reads: of the form in use, or of the decoded matrix."""
        forms = [made for made in self.forms.values() if made is not None]
        if not forms:
            return 4 * self.shape[0] * self.shape[1]
        leaves = {id(leaf): leaf for _, found in forms[-1] for plane in found for leaf in plane if hasattr(leaf, "nbytes")}
        return sum(leaf.nbytes for leaf in leaves.values()) + sum(t.nbytes for term in self.thin for t in term.tensors().values())

    def form(
        self, kernel: str, widths: Widths, make: Callable[[Any], list[Any]], declines: Callable[[Plane | Words], str | None]
    ) -> list[Made] | None:
        """Every coded term as a kernel makes it; None where it declines one, which is said once in a warning."""
        if kernel not in self.forms:
            try:
                self.forms[kernel] = self.made(widths, make, declines)
            except NotImplementedError as why:
                self.forms[kernel] = None
                warnings.warn(Decoded(f"{self.name} is decoded for every product: {why}."), stacklevel=2)
        return self.forms[kernel]

    def made(self, widths: Widths, make: Callable[[Any], list[Any]], declines: Callable[[Plane | Words], str | None]) -> list[Made]:
        terms = self.load()
        if any(isinstance(term, SignLowRank) for term in terms):
            raise NotImplementedError("signs times a thin product have no kernel yet")
        self.thin, made = [term for term in terms if not isinstance(term, Coded)], []
        if not all(hasattr(term, "times") for term in self.thin):
            raise NotImplementedError("its rows are stored in an order of their own, or as complex numbers")
        for term in terms:
            if isinstance(term, Coded):
                found = planes(term, widths)
                if why := next(filter(None, map(declines, found)), None):
                    raise NotImplementedError(why)
                made.append(
                    (None if term.columns is None else term.columns.long(), [part for plane in found for part in make(plane)])
                )
        return made

    def product(
        self, x: Float[Tensor, "n inp"], made: Sequence[Made], codes: Callable[[Float[Tensor, "n _"], list[Any]], Tensor]
    ) -> Float[Tensor, "n out"]:
        """x W^t, `codes` multiplying by the planes of one term."""
        parts = [codes(x if columns is None else x[:, columns], found) for columns, found in made]
        parts += [term.times(x) for term in self.thin]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
