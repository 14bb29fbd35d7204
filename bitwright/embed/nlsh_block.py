"""NLSHBlock: an encoder whose distances hash like a rule for pairs of records (arXiv 2401.18064; card: nlsh-block).

    min over the encoder   sum over (p, q, r)   max(R, |p - q|) - min(c R, |p - r|),      (p, q) match by the rule, (p, r) do not

Both sides end: a match within R and a stranger beyond c R pull no more, so that R stays what it says. Vectors have length 1, which
is the scale of R. Strangers are the nearest of a batch and, from time to time, the nearest that the encoder itself finds: they are
put to the rule, and what turns out to match joins the matches. What comes of it is searched by `blocking.py`.
Differs from the paper: the rule may be a function of pairs or a list of them; the encoder is given (records.py has one that needs
no language model); R, c and pooling, which the paper's abstract does not tell, are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from bitwright.embed.blocking import nearest
from bitwright.errors import BadRequest

Rule = Callable[[Int64[Tensor, "m"], Int64[Tensor, "m"]], Bool[Tensor, "m"]]  # rows left, rows right: do they match?


def loss(near: Float[Tensor, "b"], far: Float[Tensor, "b"], radius: float, ratio: float) -> Float[Tensor, ""]:
    """Of distances of matches and of strangers."""
    return (near.clamp_min(radius) - far.clamp_max(ratio * radius)).mean()


def labelled(pairs: Int64[Tensor, "p 2"]) -> Rule:
    """What is among the pairs (left, right) matches, nothing else."""
    width = int(pairs.max()) + 1 if len(pairs) else 1
    known = pairs[:, 0] * width + pairs[:, 1]
    return lambda left, right: torch.isin(left * width + right, known) & (left < width) & (right < width)


def matches(rule: Rule, left: int, right: int) -> Int64[Tensor, "p 2"]:
    """All pairs of `left` times `right` records that a rule says match, asked a right record at a time."""
    every = torch.arange(left)
    found = [every[rule(every, torch.full((left,), j))] for j in range(right)]
    return torch.stack([torch.cat(found), torch.repeat_interleave(torch.arange(right), torch.tensor([*map(len, found)]))], 1)


@dataclass(frozen=True)
class NlshBlock:
    """`batch` matches a step; every `again` steps the `mined` nearest left records of all right ones are put to the rule."""

    radius: float = 0.4
    ratio: float = 2.5
    steps: int = 600
    batch: int = 128
    rate: float = 3e-3
    mined: int = 10
    again: int = 150
    seed: int = 0

    def __call__(
        self, encoder: nn.Module, left: Sequence[str], right: Sequence[str], rule: Rule, pairs: Int64[Tensor, "p 2"]
    ) -> None:
        """Trains the encoder on `pairs` (left, right) of training records that match by the rule. Raises BadRequest for none."""
        if not len(pairs):
            raise BadRequest("No pair matches, so there is nothing to learn from; label some or loosen the rule.")
        gen = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(encoder.parameters(), self.rate)
        asked = pairs[:, 1].unique()
        for step in range(self.steps):
            if step % self.again == 0:
                strangers, fresh = self.mine(encoder, left, right, rule, asked)
                pairs = torch.cat([pairs, fresh]).unique(dim=0)
            i, j = pairs[torch.randint(len(pairs), (self.batch,), generator=gen)].T
            row = torch.searchsorted(asked, j.contiguous())
            third = strangers[row, torch.randint(strangers.shape[1], (self.batch,), generator=gen)]
            x, y, z = (
                encoder([side[n] for n in rows.tolist()]) for side, rows in ((left, i), (right, j), (left, third.clamp_min(0)))
            )
            apart = torch.cdist(y, x)
            same = rule(i.repeat(self.batch), j.repeat_interleave(self.batch)).view(apart.shape)
            mined = (y - z).norm(dim=1).masked_fill(third < 0, torch.inf)
            far = torch.minimum(apart.masked_fill(same, torch.inf).amin(1), mined)
            optimizer.zero_grad()
            loss(apart.diagonal(), far, self.radius, self.ratio).backward()
            optimizer.step()

    def mine(
        self, encoder: nn.Module, left: Sequence[str], right: Sequence[str], rule: Rule, asked: Int64[Tensor, "a"]
    ) -> tuple[Int64[Tensor, "a mined"], Int64[Tensor, "p 2"]]:
        """Of the right records `asked`: left ones that are near and do not match (-1: that one does), and pairs that do."""
        near = nearest(
            encoded(encoder, left), encoded(encoder, [right[j] for j in asked.tolist()]), min(self.mined, len(left))
        ).rows
        i, j = near.flatten(), asked.repeat_interleave(near.shape[1])
        same = rule(i, j)
        return near.masked_fill(same.view(near.shape), -1), torch.stack([i[same], j[same]], 1)


def encoded(encoder: nn.Module, texts: Sequence[str], part: int = 1024) -> Float32[Tensor, "n dims"]:
    with torch.no_grad():
        return torch.cat([encoder(texts[at : at + part]) for at in range(0, len(texts), part)])
