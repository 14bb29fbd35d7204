"""Points learned from the matrix: what grids of one codebook and of sums of codebooks share.

    x^ = s (C_1[c_1] + ... + C_K[c_K]),     C_k  [words, width] fp16, once per matrix;   s  one number per group, or none

Placed book by book: weighted k-means on what the books before have left of x / s, with the price d s^2 of an error there, so that
what is clustered is the error that counts and not that of normalised rows.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.base import Grid, Kin, Leaf, Params
from bitwright.grids.clusters import closest, kmeans
from bitwright.grids.scales import Float as FloatScale
from bitwright.kernels import dispatch

LARGEST = torch.finfo(torch.float16).max


@runtime_checkable
class Learned(Grid, Protocol):
    """A grid of learned points: codes are `books` digits below `words`, the first book's the lowest."""

    @property
    def books(self) -> int: ...

    @property
    def words(self) -> int: ...

    @property
    def scale(self) -> FloatScale | None: ...

    @property
    def weighted(self) -> bool: ...

    @property
    def rounds(self) -> int: ...


def leaves(count: int, scale: FloatScale | None) -> dict[str, Leaf]:
    """Of `count` numbers in all books. Takes no grid: asking whether something is one reads its leaves."""
    return {"book": Leaf(torch.float16, count, shared="tensor"), **({} if scale is None else {"scale": scale.own})}


def table(grid: Learned, p: Params) -> Float[Tensor, "books words width"]:
    """The books, fp32."""
    return p["book"][0].float().view(grid.books, grid.words, grid.width)


def scales(grid: Learned, p: Params) -> Float[Tensor, "g 1"]:
    return p["book"].new_ones(len(p["book"]), 1).float() if grid.scale is None else grid.scale.read(p["scale"])


def stored(books: Float[Tensor, "books words width"], groups: int) -> Tensor:
    """The leaf `book`: fp16, the same row for every group."""
    return books.clamp(-LARGEST, LARGEST).half().view(1, -1).expand(groups, -1)


def digits(grid: Learned, codes: Ints[Tensor, "..."]) -> Ints[Tensor, "books ..."]:
    return torch.stack([codes.long() // grid.words**k % grid.words for k in range(grid.books)])


def joined(grid: Learned, parts: Ints[Tensor, "books ..."]) -> Ints[Tensor, "..."]:
    codes = sum(part.long() * grid.words**k for k, part in enumerate(parts))
    return codes.to(torch.uint8 if grid.levels <= 256 else torch.int32)  # type: ignore[union-attr]


def summed(books: Float[Tensor, "books words width"], parts: Ints[Tensor, "books ..."]) -> Float[Tensor, "... width"]:
    """The sum of one word of every book, added in their order."""
    total = books[0][parts[0]]
    for book, part in zip(books[1:], parts[1:]):
        total = total + book[part]
    return total


def decode(grid: Learned, c: Ints[Tensor, "g m"], p: Params) -> Float[Tensor, "g n"]:
    return scales(grid, p) * summed(table(grid, p), digits(grid, c)).flatten(1)


def encode(grid: Learned, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g m"]:
    """The nearest of all sums, exactly: what is left of x by a word of the last book is compared with all sums of the others."""
    books = table(grid, p)
    first = books.new_zeros(1, grid.width)
    for k in range(grid.books - 1):
        first = (first[None] + books[k][:, None]).flatten(0, 1)
    y = (x.double() / scales(grid, p)).view(-1, grid.width)
    return dispatch.nearest_sum(y, first, books[-1]).to(torch.uint8 if grid.levels <= 256 else torch.int32).view(len(x), -1)


def prices(grid: Learned, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None) -> Float[Tensor, "g n"]:
    """The price of an error at each place. Groups that have none (inputs that never fired) count like the average of the others."""
    if weight is None or not grid.weighted:
        return torch.ones_like(x)
    fired = (weight > 0).any(1, keepdim=True)
    if not fired.any():
        return torch.ones_like(x)
    mean = weight[fired[:, 0]].mean()
    return torch.where(fired, weight, mean).to(x.dtype)


def fit(grid: Learned, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, kin: Kin) -> Params:
    """Scales that make the mean square of every group 1, then the books one after the other; `kin.shared` may fix the books."""
    own = {} if grid.scale is None else {"scale": grid.scale.store(x.square().mean(1, keepdim=True).sqrt())}
    if "book" in kin.shared:
        return {"book": kin.shared["book"], **own}
    s = torch.ones_like(x[:, :1]) if grid.scale is None else grid.scale.read(own["scale"]).to(x.dtype)
    rest = (x / s).view(-1, grid.width)
    d = (prices(grid, x, weight) * s.square()).view(-1, grid.width).mean(1)
    books = []
    for k in range(grid.books):
        found = kmeans(rest, d, grid.words, grid.rounds, k).clamp(-LARGEST, LARGEST).half().to(x.dtype)
        rest = rest - found[closest(rest, found)]
        books.append(found)
    return {"book": stored(torch.stack(books), len(x)), **own}


def refit(grid: Learned, x: Float[Tensor, "g n"], c: Ints[Tensor, "g m"], p: Params, weight: Float[Tensor, "g n"] | None) -> Params:
    """All books at once by weighted least squares for given codes; words that no code names stay; the old books where no gain.

    One book: the means of its clusters. More: a system of books * words unknowns for every coordinate of a vector.
    """
    d, s = prices(grid, x, weight).double(), scales(grid, p).double()
    size, parts = grid.books * grid.words, digits(grid, c).flatten(1)
    at = parts + grid.words * torch.arange(grid.books, device=c.device)[:, None]  # [books, vectors]
    pairs = (at[:, None] * size + at[None]).flatten()
    gap = x.double() - decode(grid, c, p)
    A, b = ((v).view(-1, grid.width) for v in (d * s.square(), d * s * gap))
    step = torch.zeros(size, grid.width, dtype=torch.float64, device=x.device)
    for j in range(grid.width):
        M = step.new_zeros(size * size).index_add_(0, pairs, A[:, j].repeat(grid.books**2)).view(size, size)
        right = step.new_zeros(size).index_add_(0, at.flatten(), b[:, j].repeat(grid.books))
        ridge = 1e-9 * M.diagonal().mean() + torch.finfo(torch.float64).tiny
        step[:, j] = torch.linalg.solve(M + ridge * torch.eye(size, dtype=M.dtype, device=M.device), right)
    new = {**p, "book": stored(table(grid, p).double() + step.view(grid.books, grid.words, -1), len(x))}
    losses = [((decode(grid, c, q).double() - x).square() * d).sum() for q in (new, p)]
    return new if losses[0] < losses[1] else p
