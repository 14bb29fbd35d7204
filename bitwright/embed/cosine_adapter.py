"""Cosine Adapter: a similarity becomes a chance of relevance, by a map that each query chooses (arXiv 2408.04887).

    s(q, c) = sigmoid(a F(c) + b),   F(c) = sign(c) |c|^p,   (a, b, p) = theta + MLP(q),   a, p > 0 by softplus

A cosine of 0.7 is a hit for one query and noise for another, so no one threshold cuts well. F rises for every query: the order of
results stays, and what changes is where they are cut. The scores may be those of codes; trained on them, s makes them comparable
with those of floats. `exponent` 1, 1/2, 2 are the paper's linear, root and quadratic map, None its power map.
Differs from the paper: depth, width and loss are ours (cross-entropy); F goes on below 0, where the paper's is not defined; the
network adds nothing at first to the global map without a query (Platt, 1999), and the best on held-out queries stays.
Cost: inp x 64 x 3 products per query, nothing in the index; `radius` turns a threshold into a cosine, for a search by range.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from bitwright.embed.index import Hits
from bitwright.embed.learning import descend, quiet, split
from bitwright.errors import BadRequest
from bitwright.training.loop import Training

LEAST = 1e-6  # of |c|: below it a power has no slope that a step could use


@dataclass(frozen=True, eq=False)
class CosineAdapter:
    """Fitted. `theta`: a, b, p of all queries alike, a and p before softplus; queries are moved and stretched to unit spread."""

    theta: Float32[Tensor, "3"]
    network: nn.Module
    centre: Float32[Tensor, "inp"]
    spread: Float32[Tensor, ""]
    exponent: float | None = None

    @classmethod
    def fit(
        cls,
        q: Float[Tensor, "n inp"],
        scores: Float[Tensor, "n k"],
        relevant: Bool[Tensor, "n k"],
        exponent: float | None = None,
        sampled: float = 1.0,
        hidden: int = 64,
        rate: float = 3e-3,
        batch: int = 64,
        held: float = 0.2,
        how: Training = Training(steps=2000, checks=40),
    ) -> "CosineAdapter":
        """From the results of `n` queries, those without any relevant result among them. `sampled`: the share of irrelevant results
        that was kept, for which b is corrected. Raises BadRequest where nothing, or everything, is relevant."""
        if relevant.all() or not relevant.any():
            raise BadRequest("All results are of one kind and no cut can be learned; give relevant and irrelevant ones.")
        theta, network = torch.tensor([1.0, 0.0, 0.5413]).requires_grad_(), quiet(q.shape[1], hidden, 3, how.seed)
        adapter = cls(theta, network, q.float().mean(0), q.float().std(), exponent)
        learned, judging = split(len(q), held, how.seed)

        def loss(rows: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(adapter.logits(q[rows], scores[rows]), relevant[rows].double())

        adapter.solve(scores[learned], relevant[learned])
        groups = [{"params": [theta, *network.parameters()], "lr": rate}]
        descend(groups, lambda rows, _: loss(learned[rows]), lambda: float(loss(judging)), len(learned), batch, how)
        return replace(adapter, theta=theta.detach() + torch.tensor([0.0, math.log(sampled), 0.0]))

    def solve(self, scores: Float[Tensor, "n k"], relevant: Bool[Tensor, "n k"]) -> None:
        """The best theta without queries."""
        solver = torch.optim.LBFGS([self.theta], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            value = binary_cross_entropy_with_logits(self.mapped(self.theta.expand(len(scores), 3), scores), relevant.double())
            value.backward()
            return value

        solver.step(closure)

    def parts(self, theta: Float32[Tensor, "q 3"]) -> tuple[Float64[Tensor, "q 1"], ...]:
        a, b, p = theta.double().split(1, dim=1)
        return softplus(a), b, softplus(p) if self.exponent is None else torch.full_like(p, self.exponent)

    def mapped(self, theta: Float32[Tensor, "q 3"], c: Float[Tensor, "q k"]) -> Float64[Tensor, "q k"]:
        a, b, p = self.parts(theta)
        return a * c.sign() * c.double().abs().clamp_min(LEAST) ** p + b

    def of(self, q: Float[Tensor, "q inp"]) -> Float32[Tensor, "q 3"]:
        found: Tensor = self.theta + self.network((q.float() - self.centre) / self.spread)
        return found

    def logits(self, q: Float[Tensor, "q inp"], c: Float[Tensor, "q k"]) -> Float64[Tensor, "q k"]:
        """In double: neighbouring floats stay apart, so that no order is lost."""
        return self.mapped(self.of(q), c)

    def __call__(self, q: Float[Tensor, "q inp"], c: Float[Tensor, "q k"]) -> Float64[Tensor, "q k"]:
        """The chance that each result is relevant; 0 where a search found none (score -inf)."""
        with torch.no_grad():
            return self.logits(q, c).sigmoid()

    def radius(self, q: Float[Tensor, "q inp"], chance: float) -> Float64[Tensor, "q"]:
        """The similarity at which a result of each query has this chance."""
        with torch.no_grad():
            a, b, p = self.parts(self.of(q))
        rest = (torch.tensor(chance).double().logit() - b) / a
        return (rest.sign() * rest.abs() ** (1 / p))[:, 0]

    def kept(self, hits: Hits, q: Float[Tensor, "q inp"], chance: float) -> Hits:
        """The hits of a search that have at least this chance; the others become id -1, score -inf."""
        kept = hits.scores >= self.radius(q, chance)[:, None]
        return hits._replace(ids=torch.where(kept, hits.ids, -1), scores=torch.where(kept, hits.scores, -torch.inf))
