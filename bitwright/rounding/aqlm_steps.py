"""The three half-steps of AQLM on one coded term. Each takes E = W - W^ and R = E H and gives back both as they are after it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.learned import Learned, digits, joined, scales, stored, summed, table
from bitwright.linalg import inner, pull
from bitwright.terms.coded import Coded, narrowed

DONE = 1e-10  # of the squared gradient
ROUNDING = 1e-7  # a gain this small against what it is the difference of is none
Pair = tuple[Float[Tensor, "out inp"], Float[Tensor, "out inp"]]


@dataclass(eq=False)
class Part:
    """`model` with other `books`, `scale` and `digits`: numbers as stored. `columns` are those of the matrix that it covers."""

    model: Coded
    H: Float[Tensor, "inp inp"]
    columns: Ints[Tensor, "k"]
    books: Float[Tensor, "books words v"]
    scale: Float[Tensor, "groups 1"]
    digits: Ints[Tensor, "books out m"]

    @classmethod
    def of(cls, term: Coded, H: Float[Tensor, "inp inp"]) -> "Part":
        grid: Learned = term.grid  # type: ignore[assignment]
        columns = torch.arange(term.shape[1], device=H.device) if term.columns is None else term.columns.long()
        books, scale = (t.to(H.dtype) for t in (table(grid, term.params), scales(grid, term.params)))
        return cls(term, H, columns, books, scale, digits(grid, term.codes))

    def term(self) -> Coded:
        grid: Learned = self.model.grid  # type: ignore[assignment]
        own = {} if grid.scale is None else {"scale": self.scale.to(grid.scale.dtype)}
        params = {"book": stored(self.books, len(self.scale)), **own}
        return replace(self.model, codes=joined(grid, self.digits), params=params)

    def spread(self, scale: Float[Tensor, "groups 1"]) -> Float[Tensor, "out m"]:
        """The scale of every code."""
        out, m = self.digits.shape[1:]
        narrow = narrowed(self.model.layout, self.books.shape[2])
        return narrow.join(scale.expand(-1, out * m // len(scale)), (out, m))

    def values(self, books: Float[Tensor, "books words v"], scale: Float[Tensor, "groups 1"]) -> Float[Tensor, "out k"]:
        return (self.spread(scale)[..., None] * summed(books, self.digits)).flatten(1)

    def moved(self, E: Float[Tensor, "out inp"], step: Float[Tensor, "out k"]) -> Pair:
        """E and R after W^ has moved by `step`."""
        E = E.index_add(1, self.columns, step, alpha=-1)
        return E, pull(E, self.H)

    # --- books ---------------------------------------------------------------------------------------------------------------

    def gathered(self, x: Float[Tensor, "out k"]) -> Float[Tensor, "n v"]:
        """The transpose of what makes weights of words: one row for every word of every book."""
        v = self.books.shape[2]
        y = (self.spread(self.scale)[..., None] * x.view(*self.digits.shape[1:], v)).view(-1, v)
        return torch.cat([torch.zeros_like(b).index_add_(0, d.flatten(), y) for b, d in zip(self.books, self.digits)])

    def fit_books(self, E: Float[Tensor, "out inp"], R: Float[Tensor, "out inp"], steps: int) -> Pair:
        H = self.H[self.columns][:, self.columns]
        s = self.spread(self.scale)[..., None].expand(-1, -1, self.books.shape[2]).flatten(1)
        pivot = self.gathered(s * H.diagonal())
        pivot = torch.where(pivot > 0, pivot, torch.inf)  # words without a say stay where they are
        rest, step = self.gathered(R[:, self.columns]), torch.zeros_like(pivot)
        ahead = z = rest / pivot
        power = start = inner(rest, z)
        for _ in range(steps):
            pulled = self.gathered(pull(self.values(ahead.view_as(self.books), self.scale), H))
            if not (curve := inner(ahead, pulled)) > 0:
                break
            step = step + power / curve * ahead
            rest = rest - power / curve * pulled
            z = rest / pivot
            power, last = inner(rest, z), power
            if not power > DONE * start:  # beyond, what is left is rounding, and books that undo each other drift
                break
            ahead = z + power / last * ahead
        new = stored(self.books + step.view_as(self.books), 1).to(E.dtype).view(self.books.shape)
        found = self.moved(E, self.values(new - self.books, self.scale))
        if not inner(*found) < inner(E, R):
            return E, R
        self.books = new
        return found

    # --- scales --------------------------------------------------------------------------------------------------------------

    def fit_scales(self, E: Float[Tensor, "out inp"], R: Float[Tensor, "out inp"]) -> Pair:
        """Of one block of rows at a time, all its groups together; a block keeps its own where the stored ones lose."""
        codec = self.model.grid.scale  # type: ignore[attr-defined]
        if codec is None:
            return E, R
        (down, across), out = self.model.tiles, len(E)
        H, U = self.H[self.columns][:, self.columns], self.values(self.books, torch.ones_like(self.scale))
        size = U.shape[1] // across

        def blocks(x: Float[Tensor, "rows k"]) -> Float[Tensor, "blocks groups"]:
            return x.view(down, out // down, across, size).sum((1, 3))

        at = [slice(g * size, (g + 1) * size) for g in range(across)]
        A = torch.stack([blocks(U[:, g] @ H[g] * U) for g in at], 1)
        ridge = 1e-6 * A.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + torch.finfo(A.dtype).tiny
        eye = torch.eye(across, dtype=A.dtype, device=A.device)
        step = torch.linalg.solve(A + ridge * eye, blocks(R[:, self.columns] * U)[..., None])
        new = codec.read(codec.store(self.scale + step.view(-1, 1))).to(E.dtype)
        then = self.moved(E, self.values(self.books, new - self.scale))
        losses = [(e * r).view(down, -1).sum(1, dtype=torch.float64) for e, r in (then, (E, R))]
        better = (losses[0] < losses[1])[:, None]
        self.scale = torch.where(better.expand(-1, across).reshape(-1, 1), new, self.scale)
        rows = better.repeat_interleave(out // down, 0)
        return torch.where(rows, then[0], E), torch.where(rows, then[1], R)

    # --- codes ---------------------------------------------------------------------------------------------------------------

    def search(self, E: Float[Tensor, "out inp"], R: Float[Tensor, "out inp"], beam: int, gen: torch.Generator) -> Pair:
        E, R, spread = E.clone(), R.clone(), self.spread(self.scale)
        for i in torch.randperm(self.digits.shape[2], generator=gen).tolist():
            v = self.books.shape[2]
            here = self.columns[i * v : (i + 1) * v]
            step = self.choose(i, R[:, here], spread[:, i : i + 1], self.H[here][:, here], beam, gen)
            rows = step.any(1).nonzero()[:, 0]
            R[rows] -= step[rows] @ self.H[here]
            E[:, here] -= step
        return E, R

    def choose(
        self, i: int, t: Float[Tensor, "out v"], s: Float[Tensor, "out 1"], B: Float[Tensor, "v v"], beam: int, gen: torch.Generator
    ) -> Float[Tensor, "out v"]:
        """New codes for the run i of inputs; by how much its values have moved."""
        old = self.digits[:, :, i]
        was = summed(self.books, old)
        held, cost = old[..., None], torch.zeros_like(s)  # hypotheses [books, out, b], and what they would change
        for k in torch.randperm(len(self.books), generator=gen).tolist():
            C = self.books[k]
            others = summed(self.books, held) - C[held[k]]
            pulled = t[:, None] + s[..., None] * ((was[:, None] - others) @ B)
            price = (s.square() * ((C @ B) * C).sum(1))[:, None] - 2 * s[..., None] * (pulled @ C.T)
            total = cost[..., None] + price - price.gather(2, held[k][..., None])
            cost, best = total.flatten(1).topk(min(beam, total[0].numel()), largest=False)
            held = held.gather(2, (best // len(C)).expand(len(held), -1, -1))
            held[k] = best % len(C)
        gain = cost[:, :1] < -ROUNDING * (s * was * (t + s * was @ B)).abs().sum(1, keepdim=True)
        chosen = torch.where(gain[None], held[..., :1], old[..., None])[..., 0]
        self.digits[:, :, i] = chosen
        return s * (summed(self.books, chosen) - was)
