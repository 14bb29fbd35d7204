"""Semantic ids: an item as a few whole numbers whose first ones say the most (RQ-VAE as in arXiv 2306.08121; card: semantic-ids).

    z = E(x),  r_1 = z,  c_l = argmin_k |r_l - e^l_k|,  r_(l+1) = r_l - e^l_(c_l),   x^ = D(z + sg[sum_l e^l_(c_l) - z])
    min   |x - x^|^2 + sum_l ( beta |r_l - sg[e^l_(c_l)]|^2 + |sg[r_l] - e^l_(c_l)|^2 ),      sg: no gradient

Items alike share prefixes, so a table over ids (pieces.py) says something of an item that it has never seen.
Differs from the paper: E and D are an orthonormal map and its inverse with networks added that are nothing at first, and the books
start as residual k-means: the start is that baseline itself, and training is kept only where held-out items come out nearer.
Impressions weigh the loss instead of drawing items. A point is renewed when a whole pass has not used it, where the paper renews
after every batch, for a batch here may have fewer items than a book has points. These ids are a type of their own: a level has as
many points as it is given, where a `Book` has sixteen per nibble.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from bitwright.embed.learning import descend, quiet, split
from bitwright.embed.projections import Principal
from bitwright.errors import BadRequest
from bitwright.grids.clusters import closest, kmeans
from bitwright.training.loop import Training


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Fitted. `matrix` has orthonormal rows; `encoder` and `decoder` are what is added to it and to its inverse."""

    matrix: Float32[Tensor, "dims inp"]
    encoder: nn.Module
    decoder: nn.Module
    books: Float32[Tensor, "levels points dims"]

    @classmethod
    def start(
        cls,
        x: Float[Tensor, "n inp"],
        levels: int,
        points: int,
        dims: int | None,
        weight: Float32[Tensor, "n"],
        hidden: int,
        seed: int,
    ) -> "SemanticIds":
        """Residual k-means."""
        matrix = Principal()(x, dims or x.shape[1])
        rest, books = x @ matrix.T, []
        for level in range(levels):
            book = kmeans(rest, weight, points, 25, seed + level)
            rest = rest - book[closest(rest, book)]
            books.append(book)
        (dims, inp) = matrix.shape
        return cls(matrix, quiet(inp, hidden, dims, seed), quiet(dims, hidden, inp, seed + 1), torch.stack(books))

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "n inp"],
        levels: int = 4,
        points: int = 256,
        dims: int | None = None,
        impressions: Float[Tensor, "n"] | None = None,
        beta: float = 0.25,
        hidden: int = 256,
        rate: float = 3e-4,
        batch: int = 512,
        held: float = 0.1,
        how: Training = Training(steps=2000),
    ) -> "SemanticIds":
        """Ids of `levels` numbers below `points` for items like `x`. `dims`: of z (None: those of x). Raises BadRequest where there
        are fewer items than points."""
        learned, judging = split(len(x), held, how.seed)
        if len(learned) < points:
            raise BadRequest(f"{len(x)} items are too few for books of {points} points; give more items or ask for fewer points.")
        x = x.float()
        weight = torch.ones(len(x)) if impressions is None else impressions.float() / impressions.float().mean()
        ids = cls.start(x[learned], levels, points, dims, weight[learned], hidden, how.seed)
        ids.books.requires_grad_()
        idle, patience = torch.zeros(levels, points), len(learned) // min(batch, len(learned))

        def loss(rows: Tensor, _: int) -> Tensor:
            items = x[learned[rows]]
            z = ids.latent(items)
            c, rests = ids.quantized(z)
            renew(ids.books, c, rests, idle, patience)
            chosen = ids.chosen(c)
            before = torch.cat([torch.zeros_like(chosen[:1]), chosen.detach().cumsum(0)[:-1]])
            commit = (z - before - chosen.detach()).square().sum((0, 2))
            follow = (rests - chosen).square().sum((0, 2))
            made = (items - ids.made(z + (chosen.sum(0) - z).detach())).square().sum(1)
            return (weight[learned[rows]] * (made + beta * commit + follow)).mean()

        def judge() -> float:
            error = (x[judging] - ids.decode(ids.encode(x[judging]))).square().sum(1)
            return float((weight[judging] * error).mean())

        groups = [{"params": [ids.books, *ids.encoder.parameters(), *ids.decoder.parameters()], "lr": rate}]
        descend(groups, loss, judge, len(learned), batch, how)
        return replace(ids, books=ids.books.detach())

    def latent(self, x: Float[Tensor, "n inp"]) -> Float32[Tensor, "n dims"]:
        found: Tensor = x.float() @ self.matrix.T + self.encoder(x.float())
        return found

    def made(self, z: Float32[Tensor, "n dims"]) -> Float32[Tensor, "n inp"]:
        found: Tensor = z @ self.matrix + self.decoder(z)
        return found

    @torch.no_grad()
    def quantized(self, z: Float32[Tensor, "n dims"]) -> tuple[Int64[Tensor, "n levels"], Float32[Tensor, "levels n dims"]]:
        """The numbers of each, and what every level was given."""
        rest, codes, rests = z, [], []
        for book in self.books:
            rests.append(rest)
            codes.append(closest(rest, book))
            rest = rest - book[codes[-1]]
        return torch.stack(codes, 1), torch.stack(rests)

    def chosen(self, codes: Int64[Tensor, "n levels"]) -> Float32[Tensor, "levels n dims"]:
        return torch.stack([book[c] for book, c in zip(self.books, codes.T)])

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n inp"]) -> Int64[Tensor, "n levels"]:
        return self.quantized(self.latent(x))[0]

    @torch.no_grad()
    def decode(self, codes: Int64[Tensor, "n levels"]) -> Float32[Tensor, "n inp"]:
        """A prefix of the levels decodes to what it says."""
        return self.made(self.chosen(codes).sum(0))


@torch.no_grad()
def renew(books: Tensor, codes: Tensor, rests: Tensor, idle: Float32[Tensor, "levels points"], patience: int) -> None:
    """Points that no item of the last `patience` batches chose become what items of this batch (in random order) have left.
    Other items on every level: one that has a point of its own leaves nothing to the next."""
    for level, (book, c, unused) in enumerate(zip(books, codes.T, idle)):
        rest = rests[level, level :: len(books)]
        unused += 1
        unused[c] = 0
        dead = (unused >= patience).nonzero()[:, 0][: len(rest)]
        book[dead] = rest[: len(dead)]
        unused[dead] = 0
