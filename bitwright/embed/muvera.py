"""MUVERA: a set of vectors as one, so that an inner product estimates Chamfer similarity (arXiv 2405.19504; card: muvera).

    cell_r(x) = number of the bits [<g, x - c> > 0], g in G_r          k random hyperplanes, 2^k cells, drawn R times
    F_query[r, b] = sum  of psi_r(q) over the q of cell b              0 where there is none
    F_document[r, b] = mean of psi_r(p) over the p of cell b           where there is none and `fill`: psi_r of the token of the
                                                                       nearest cell (fewest bits apart, then the first)
    <F_query(Q), F_document(P)> / R  ~  sum over q in Q of max over p in P of <q, p>

Near vectors share cells, so a query's token meets the mean of what is near to it. Nothing is learned; what was drawn is kept as
numbers. `final` sketches the whole vector once more. Cells are plain binary numbers. The nearest occupied cells of all cells are
found by k passes, a min-plus transform over the bits, whatever the number of tokens. Scores are inner products, never cosines:
lengths of encodings mean something.
Differs from the paper: c, the mean of the corpus, shifts the hyperplanes (not the vectors) for tokens that lie in one cone; filling
is a choice that `fitted` measures, as it harms short documents of scattered tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from bitwright.embed.chamfer import Sets, chamfer
from bitwright.embed.sketches import Signs, Sketch, Slots, sketch_of
from bitwright.embed.views import below
from bitwright.errors import BadRequest

HELD = 1 << 24  # numbers of encodings made at a time, before the final sketch


@dataclass(frozen=True, eq=False)
class Muvera:
    planes: Float32[Tensor, "r k d"]
    inner: tuple[Sketch, ...]  # one per repetition
    centre: Float32[Tensor, "d"]
    final: Sketch | None = None
    fill: bool = True

    @classmethod
    def drawn(
        cls,
        dim: int,
        repetitions: int = 20,
        bits: int = 5,
        inner: int | None = 16,
        final: int | None = None,
        kind: type[Signs] | type[Slots] = Slots,
        centre: Float32[Tensor, "d"] | None = None,
        seed: int = 0,
    ) -> "Muvera":
        """For tokens of `dim` numbers, `inner` of them kept per cell (None: all), all cells sketched to `final` (None: not).
        `kind`: the published code sketches by Slots, the paper by Signs. Raises BadRequest for sizes that make no encoding."""
        if min(dim, repetitions, inner or 1, final or 1) < 1 or not 0 <= bits <= 20:
            raise BadRequest(f"{repetitions} repetitions of {bits} bits make no encoding; give sizes from 1 and 0 to 20 bits.")
        gen = torch.Generator().manual_seed(seed)
        planes = torch.randn(repetitions, bits, dim, generator=gen)
        inners = [Slots.same(dim) if inner is None else kind.drawn(dim, inner, gen) for _ in range(repetitions)]
        whole = repetitions * 2**bits * (inner or dim)
        last = None if final is None else kind.drawn(whole, final, gen)
        return cls(planes, tuple(inners), torch.zeros(dim) if centre is None else centre, last)

    @property
    def cells(self) -> int:
        return int(2 ** self.planes.shape[1])

    def queries(self, sets: Sets) -> Float32[Tensor, "n dims"]:
        """Raises BadRequest for tokens of another size."""
        return self.encoded(sets, False)

    def documents(self, sets: Sets) -> Float32[Tensor, "n dims"]:
        """A document without tokens is zero. Raises BadRequest for tokens of another size."""
        return self.encoded(sets, True)

    def encoded(self, sets: Sets, documents: bool) -> Float32[Tensor, "n dims"]:
        if sets.tokens.shape[1] != self.planes.shape[2]:
            raise BadRequest(f"Tokens have {sets.tokens.shape[1]} numbers, not {self.planes.shape[2]}; use the model they are of.")
        width = self.inner[0](self.centre[None]).shape[1]
        step = max(1, HELD // (len(self.inner) * self.cells * width))
        parts = []
        for first in range(0, max(1, len(sets)), step):
            part = sets.part(first, min(first + step, len(sets)))
            blocks = torch.cat([self.blocks(part, r, documents) for r in range(len(self.inner))], 1)
            parts.append(blocks if self.final is None else self.final(blocks))
        return torch.cat(parts)

    def blocks(self, sets: Sets, r: int, documents: bool) -> Float32[Tensor, "n held"]:
        """Repetition r: what every cell of every set holds."""
        tokens, count = sets.tokens.float(), len(sets) * self.cells
        place = sets.owner * self.cells + self.cell(tokens, r)
        y = self.inner[r](tokens)
        held = y.new_zeros(count, y.shape[1]).index_add_(0, place, y)
        if documents:
            number = torch.bincount(place, minlength=count)
            held /= number.clamp_min(1)[:, None]
            if self.fill and len(tokens):
                empty = (number == 0).nonzero()[:, 0]
                source = self.sources(place, len(sets))[empty]
                held[empty] = torch.where((source >= 0)[:, None], y[source], 0.0)
        return held.view(len(sets), self.cells * y.shape[1])

    def cell(self, tokens: Float32[Tensor, "t d"], r: int) -> Int64[Tensor, "t"]:
        bits = (tokens - self.centre) @ self.planes[r].T > 0
        return (bits << torch.arange(bits.shape[1], device=bits.device)).sum(1)

    def sources(self, place: Int64[Tensor, "t"], sets: int) -> Int64[Tensor, "n"]:
        """Of every cell of every set the token of the nearest cell, by (bits apart, position); -1 in a set without any."""
        bits, apart = self.planes.shape[1], len(place)
        none = (bits + 1) * apart
        least = torch.full((sets * self.cells,), none, device=place.device)
        least.scatter_reduce_(0, place, torch.arange(apart, device=place.device), "amin")
        for j in range(bits):
            sides = least.view(-1, 2, 2**j)
            least = torch.minimum(sides, sides.flip(1) + apart).flatten()
        return torch.where(least < none, least % apart, -1)

    def fitted(self, queries: Sets, documents: Sets) -> "Muvera":
        """With or without filling: whichever ranks the best document of these queries higher, by the mean logarithm of its rank."""
        best = chamfer(queries, documents).argmax(1, keepdim=True)
        asked = self.queries(queries)

        def lost(encoder: "Muvera") -> float:
            estimates = asked @ encoder.documents(documents).T
            return float((estimates >= estimates.gather(1, best)).sum(1).log().mean())

        return min((replace(self, fill=fill) for fill in (True, False)), key=lost)

    def to(self, device: torch.device) -> "Muvera":
        inner, final = tuple(one.to(device) for one in self.inner), self.final and self.final.to(device)
        return replace(self, planes=self.planes.to(device), inner=inner, centre=self.centre.to(device), final=final)

    def tensors(self) -> dict[str, Tensor]:
        sketches = {f"inner.{r}": sketch for r, sketch in enumerate(self.inner)} | ({"final": self.final} if self.final else {})
        named = {f"{name}.{part}": tensor for name, sketch in sketches.items() for part, tensor in sketch.tensors().items()}
        return {"planes": self.planes, "centre": self.centre, "fill": torch.tensor(self.fill)} | named

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Muvera":
        def sketch(name: str) -> Sketch | None:
            parts = below(tensors, name)
            return sketch_of(parts) if parts else None

        inner = tuple(sketch(f"inner.{r}") for r in range(len(tensors["planes"])))
        return cls(tensors["planes"], inner, tensors["centre"], sketch("final"), bool(tensors["fill"]))  # type: ignore[arg-type]
