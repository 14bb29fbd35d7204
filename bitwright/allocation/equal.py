"""Equal: candidates that compute the same are measured once (Unified Functional Hashing, arXiv 2302.05433; functional-hashing).

A candidate is named by numbers that it produces: of each, sign, exponent and the first `bits` bits of the mantissa, hashed in
order. Three names, from cheap to general: the recipe's text; the packed codes and scales (`digest`: integers need no rounding); the
function itself on fixed tokens (`function_keys`). A long vector of floats never hashes alike twice, since some number always sits
at a rounding boundary; hence 16 fixed random projections, a second key half a step away, and hits confirmed on the numbers.

`Cache` keeps the mean of at most `most` evaluations per key and forgets a key at a hit with probability `forget`, so that one lucky
value of a noisy measure cannot rule a search for ever. Differs from the paper: hits are confirmed, and the default never forgets,
as our measures are deterministic.
"""

import hashlib
import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

PROJECTIONS, NEAR = 16, 1e-5


def digest(tensors: Iterable[Tensor]) -> str:
    """Of stored tensors, bit for bit."""
    found = hashlib.sha256()
    for t in tensors:
        found.update(f"{t.dtype}{tuple(t.shape)}".encode())
        found.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def projected(x: Float[Tensor, "..."], seed: int = 0) -> Float[Tensor, "16"]:
    """Fixed random projections of all numbers, fp64."""
    flat = x.detach().double().cpu().flatten()
    g = torch.Generator().manual_seed(seed)
    return torch.stack([flat @ torch.randn(len(flat), generator=g, dtype=torch.float64) for _ in range(PROJECTIONS)])


def function_keys(x: Float[Tensor, "..."], bits: int = 10) -> tuple[str, str]:
    """Two names of a function by its values on fixed inputs: rounded, and rounded half a step away. -0 is 0, NaN and infinity are
    themselves."""
    mantissa, exponent = torch.frexp(projected(x))
    steps = mantissa.nan_to_num(2.0, 3.0, -3.0) * 2**bits
    return tuple(digest([(steps + offset).floor() + 0.0, exponent]) for offset in (0.5, 0.0))  # type: ignore[return-value]


@dataclass
class Cache:
    """`measure` asked at most `most` times per key; `hits` were answered from here."""

    most: int = 1
    forget: float = 0.0
    seed: int = 0
    known: dict[Hashable, tuple[float, int]] = field(default_factory=dict)
    hits: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # its own: a search must not depend on what was found here

    def __call__(self, key: Hashable, measure: Callable[[], float]) -> float:
        total, count = self.known.get(key, (0.0, 0))
        if count < self.most:
            total, count = total + measure(), count + 1
        else:
            self.hits += 1
        if count >= self.most and self.dice.random() < self.forget:
            self.known.pop(key, None)
        else:
            self.known[key] = total, count
        return total / count


@dataclass
class Functions:
    """Cached values by function: a hit needs one of two keys and the same projections to 1e-5."""

    cache: Cache = field(default_factory=Cache)
    seen: dict[str, tuple[Float[Tensor, "16"], int]] = field(default_factory=dict)

    def __call__(self, outputs: Float[Tensor, "..."], measure: Callable[[], float]) -> float:
        numbers, keys = projected(outputs), function_keys(outputs)
        for key in keys:
            if key in self.seen and torch.allclose(self.seen[key][0], numbers, rtol=NEAR, atol=NEAR * float(numbers.abs().max())):
                return self.cache(self.seen[key][1], measure)
        name = len(self.seen)
        self.seen |= dict.fromkeys(keys, (numbers, name))
        return self.cache(name, measure)
