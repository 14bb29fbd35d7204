"""Why did recall fall? Codes held against the vectors that they were made from.

Every test looks for one known fault and ends in a sentence: what was measured, what causes it, what to do. Tests read codes as
they were meant (cases.py), so that a fault of convention is told once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bitwright.embed import codecs
from bitwright.embed.cases import FOLLOWS, Case, follows
from bitwright.embed.index import Index
from bitwright.embed.judging import exact
from bitwright.evaluation.retrieval import difference, overlap

State = Literal["good", "look", "fault", "skipped"]
Said = tuple[State, str]
BATCHES = 8


@dataclass(frozen=True)
class Verdict:
    """Of one test. `look`: right for some purposes and wrong for others."""

    test: str
    state: State
    said: str


def convention(case: Case) -> Said:
    if case.changed:
        return "fault", (
            f"The codes follow the vectors only {case.changed}; change them before any other tool "
            "reads them, and let search and rescoring read them alike."
        )
    return "good", "The codes are read as they lie: bits with the most significant first, integers as typed."


def likeness(case: Case) -> Tensor:
    """The cosine of every vector with what its code stands for, both around their means."""
    x, near = (y - y.mean(0) for y in (case.x if case.codes_metric == "ip" else normalize(case.x), case.near))
    return cosine_similarity(x, near)[1::2]


def round_trip(case: Case) -> Said:
    like = float(likeness(case).median())
    if like < FOLLOWS:
        return "fault", (
            f"What the codes stand for has a cosine of only {like:.2f} with the vectors: they are "
            "of another model or in another order; encode these vectors again."
        )
    if case.again is not None and case.again < 0.99:
        return "fault", (
            f"Coded again, {100 * (1 - case.again):.1f} % of the nibbles differ: the vectors are not "
            "those that were coded, or not in the order of the file; give them as they were."
        )
    return "good", f"What the codes stand for has a cosine of {like:.2f} with the vectors."


def one_space(case: Case) -> Said:
    like = likeness(case)
    strange = like < 0.4 * like.quantile(0.9)
    share = float(strange.float().mean())
    if share > 0.02 and float(like.median()) >= FOLLOWS:
        at = strange.nonzero()[:, 0].float()
        place = " to ".join(f"{100 * float(at.quantile(p)) / len(like):.0f} %" for p in (0.05, 0.95))
        return "fault", (
            f"{100 * share:.0f} % of the codes stand for nothing like their vectors, most of them "
            f"from {place} of the rows: they come from another codec or model; encode those again."
        )
    return "good", "All codes stand for vectors like their own: one codec made them."


def levels(case: Case) -> Said:
    """Of integers; of bits, whether they say anything."""
    if not case.plain:
        dull = float(((case.raw == case.raw.mode(0).values).float().mean(0) > 0.99).float().mean())
        if dull > 0.1:
            return "fault", (
                f"{100 * dull:.0f} % of the code's places hold the same value for every vector: "
                "subtract the mean of the vectors before coding them."
            )
        return "good", f"{100 * (1 - dull):.0f} % of the code's places tell vectors apart."
    used = float((case.raw.amax(0) - case.raw.amin(0) + 1).median())
    ends = ((case.raw == case.raw.min()) | (case.raw == case.raw.max())).float().mean()
    same = float((case.raw == case.raw.mode(0).values).float().mean())
    cure = "calibrate: map the range of each coordinate over a sample of the vectors onto -127 to 127"
    if used < 16 or same > 0.9:
        return "fault", (
            f"A coordinate uses {used:.0f} of 256 integers, and {100 * same:.0f} % of them are the same "
            f"one: the vectors were cast without a scale; {cure}."
        )
    if ends > 0.05:
        return "fault", f"{100 * ends:.0f} % of the integers stand at an end of the range: it is too narrow; {cure}."
    if FOLLOWS <= float(follows(case.raw, case.x).median()) < 0.9:
        return "fault", f"Integers and coordinates do not grow together: sums have wrapped around; {cure}."
    return "good", f"A coordinate uses {used:.0f} of 256 integers, {100 * ends:.1f} % stand at an end."


def rotation(case: Case) -> Said:
    """Of grids of few levels, against codes of the centred and rotated vectors in as many bits."""
    told, bits = f"The codes keep {float(case.kept.mean()):.2f} of the float top {case.k}", max(case.bits, 0.25)
    if bits > 4.5 and case.plain:
        return "good", f"{told}; so many levels need no rotation."
    if float(likeness(case).median()) < FOLLOWS or case.x.shape[1] * bits < 4 or len(case.x) < 16:
        return "skipped", f"{told}; there is nothing to compare them with."
    codec = codecs.fit(case.x, min(bits, 8.0), "rotated", metric=case.codes_metric)
    again = overlap(exact(codec.decode(codec.encode(case.x)), case.q, case.k, case.codes_metric), case.truth)
    gain = difference(case.kept, again)
    if gain.value > 0.05 and gain.low > 0:
        return "fault", (
            f"{told}, codes of the rotated vectors in {bits:.2g} bits {float(again.mean()):.2f}: few "
            "directions hold what matters; subtract the mean and rotate by a random orthonormal matrix before coding "
            f"(bitwright index build --codec rotated --bits {bits:.2g})."
        )
    return "good", f"{told}, those of the rotated vectors {float(again.mean()):.2f}."


def metric(case: Case) -> Said:
    if case.metric == case.codes_metric:
        return "good", f"The codes are compared by {NAMES[case.metric]}, as asked."
    other = float(overlap(exact(case.x, case.q, case.k, case.codes_metric), case.truth).mean())
    if other < 0.95:
        return "fault", (
            f"The codes can only be compared by {NAMES[case.codes_metric]}, which keeps {other:.2f} of "
            f"the top {case.k} by {NAMES[case.metric]}; build the codes for the metric that the model was trained with."
        )
    return "good", "The vectors are about equally long, so cosines and inner products rank alike."


def lengths(case: Case) -> Said:
    """Cosine of vectors whose lengths mean something: FDEs of multi-vector models above all."""
    if case.metric == "ip":
        return "good", "Inner products keep the lengths of the vectors."
    size = case.x.norm(dim=1)
    spread, same = float(size.std() / size.mean()), float(overlap(exact(case.x, case.q, case.k, "ip"), case.truth).mean())
    if spread < 0.01 or same > 0.9:
        return "good", f"Cosines and inner products share {same:.2f} of their top {case.k}."
    told = f"Lengths differ by {100 * spread:.0f} %, and cosines share only {same:.2f} of the top {case.k} with inner products"
    if float((case.q == 0).float().mean()) > 0.02:
        return "fault", f"{told}; queries with empty cells are FDEs of a multi-vector model: use metric ip."
    return "look", f"{told}; right for a model trained with cosines, else (FDEs, recommenders) use metric ip."


def ties(case: Case) -> Said:
    """Documents that no query can tell apart."""
    _, which, times = case.raw.unique(dim=0, return_inverse=True, return_counts=True)
    _, own, copies = case.x.unique(dim=0, return_inverse=True, return_counts=True)
    share = float((times[which] > copies[own]).float().mean())
    if share > 0.05:
        return "fault", (
            f"{100 * share:.0f} % of the documents share their code with another vector, at most "
            f"{int(times.max())} one code: their order is chance; spend more bits, or score candidates again."
        )
    return "good", f"{100 * (1 - share):.1f} % of different vectors have codes of their own."


def drift(case: Case) -> Said:
    """The mean and the length of what codes stand for, batch by batch, in the order of the rows."""
    if len(case.near) < 32 * BATCHES:
        return "skipped", f"{len(case.near)} vectors are too few to be seen in batches; give {32 * BATCHES}."
    spread = case.near.std(0)
    spread[spread < 1e-3 * spread.max()] = torch.inf
    batches = case.near.tensor_split(BATCHES)
    size, m = case.near.norm(dim=1), len(batches[0])
    # what chance does to the mean of a batch is taken off
    shift = [max(0.0, float(((b.mean(0) - case.near.mean(0)) / spread).square().mean()) - 1 / m) ** 0.5 for b in batches]
    longer = [float(b.norm(dim=1).mean() / size.mean()) for b in batches]
    worst, longest = int(np.argmax(shift)), int(np.argmax([abs(r - 1) for r in longer]))
    chance = 3 * float(size.std() / size.mean()) / m**0.5
    if shift[worst] > 0.25 or abs(longer[longest] - 1) > 0.1 + chance:
        at = worst if shift[worst] > 0.25 else longest
        return "fault", (
            f"Batch {at + 1} of {BATCHES} differs from the others: its codes are shifted by "
            f"{shift[at]:.2f} spreads and {longer[at]:.2f} times as long; where the model or the text changed, fit a codec "
            "on all of it and build again."
        )
    return "good", (
        f"No batch of {BATCHES} is shifted by more than {shift[worst]:.2f} spreads; lengths within "
        f"{100 * abs(longer[longest] - 1):.1f} %."
    )


def scores(case: Case) -> Said:
    """Whose scores are these? Each explanation is a matrix of scores; the one that correlates best over documents is believed."""
    if case.scores is None:
        return "skipped", "Give --scores, a row per query, to learn what they were made from."
    made = {(name, how): q_ @ y.T for name, q_, y in sides(case) for how, q_, y in measured(q_, y)}
    fit = {way: correlation(case.scores, table) for way, table in made.items()}
    best = max(fit, key=lambda way: fit[way])
    right = max(fit[way] for way in fit if way[0] in RIGHT and way[1] == case.metric)
    told = f"The scores are those of {best[0]} by {NAMES[best[1]]} (correlation {fit[best]:.3f})"
    if abs(fit[best]) < 0.7:
        return "fault", "The scores are explained by nothing that these queries and codes give; check their order."
    if 1 - right > 2 * (1 - fit[best]) + 1e-3:
        return "fault", (
            f"{told}, not of what the codes stand for by {NAMES[case.metric]} ({right:.3f}); "
            "turn codes into vectors first, read as search reads them, and compare by the metric of the model."
        )
    return "good", f"{told}."


NAMES: dict[str, str] = {"cosine": "cosine", "ip": "inner product", "l2": "distance"}
RIGHT = ("the float vectors", "what the codes stand for", "codes against codes")


def sides(case: Case) -> Iterator[tuple[str, Tensor, Tensor]]:
    yield RIGHT[0], case.q, case.x
    yield RIGHT[1], case.q, case.near
    if case.plain:
        yield "the raw integers", case.q, case.raw
    elif case.again is None and case.raw.shape[1] == case.x.shape[1]:
        yield RIGHT[2], case.q.sign(), 2 * case.raw - 1
        flipped = torch.where(torch.arange(case.raw.shape[1]) % 8 == 0, 1 - case.raw, case.raw)
        yield "codes with one bit in eight flipped", case.q, 2 * flipped - 1


def measured(q: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    yield "ip", q, y
    yield "cosine", q, normalize(y)
    yield "l2", torch.cat([2 * q, -torch.ones(len(q), 1)], 1), torch.cat([y, y.square().sum(1, keepdim=True)], 1)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)).mean())


TESTS: tuple[Callable[[Case], Said], ...] = (
    convention, round_trip, one_space, levels, rotation, metric, lengths, ties, drift, scores,
)  # fmt: skip


def check(case: Case) -> list[Verdict]:
    return [Verdict(test.__name__.replace("_", " "), *test(case)) for test in TESTS]


def of_files(paths: list[Path]) -> list[Verdict]:
    """Of files that are to be searched together. Opening one checks that its codec is the one it was written with."""
    indexes = [Index.open(path) for path in paths]
    if not indexes:
        return []
    one = indexes[0]
    for path, other in zip(paths, indexes):
        if other.codec.space_id not in (one.codec.space_id, *one.compatible):
            return [Verdict("spaces", "fault", f"{path} is of space {other.codec.space_id} and {paths[0]} of {one.codec.space_id}: "
                            "their scores cannot be compared; build both with one codec.")]  # fmt: skip
    return [Verdict("spaces", "good", f"{len(indexes)} {'file' if len(indexes) == 1 else 'files'} of space {one.codec.space_id}.")]
