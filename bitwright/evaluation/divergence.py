"""How far a compressed model is from its baseline, token by token: KL, top token, probability of the truth.

b = baseline, q = compressed, x the true next token, over the whole vocabulary, in nats (card: evaluation, section 2):

    KL = sum_v p_b(v) (log p_b(v) - log p_q(v))          baseline first
       = sum_v p_b(v) (z_b(v) - z_q(v)) - log S_b + log S_q,     z = logits - max,  S = sum exp z
    r  = mean (l_q - l_b) = ln(PPL_q / PPL_b),           delta p = p_q(x) - p_b(x)

Logits come back chunk by chunk from the stored states (see hidden.py): two head products per token and no second pass.
Exponentials in fp32, sums over the vocabulary in fp64: equal models give exactly 0, others are right to about 1e-7.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from bitwright.errors import BadRequest
from bitwright.evaluation.base import Score, block_mean, block_quantiles
from bitwright.evaluation.hidden import Hidden, logits
from bitwright.progress import Progress, silent

CHUNK = 1 << 20  # logits of each model held at once
LADDER = {"median": 0.5, "90": 0.9, "95": 0.95, "99": 0.99, "99.9": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Tokens:
    """Per-token numbers; column t belongs to token t+1 of the window. NLL and KL in nats, `top_*` are token ids."""

    kl: Float[np.ndarray, "rows scored"]
    nll_base: Float[np.ndarray, "rows scored"]
    nll_other: Float[np.ndarray, "rows scored"]
    delta_p: Float[np.ndarray, "rows scored"]
    top_base: Int[np.ndarray, "rows scored"]
    top_other: Int[np.ndarray, "rows scored"]

    @property
    def same_top(self) -> Bool[np.ndarray, "rows scored"]:
        return self.top_base == self.top_other


@dataclass(frozen=True)
class Divergence:
    """Distance to the baseline. `ladder`: percentiles of KL by name; `broken`: tokens whose numbers are not finite."""

    kl: Score
    ladder: dict[str, Score]
    same_top: Score
    delta_p_mean: Score
    delta_p_rms: Score
    broken: int


def surprise(
    hidden: Hidden, head: nn.Module, ids: Int[Tensor, "rows length"], progress: Progress = silent
) -> Float[np.ndarray, "rows scored"]:
    """-log p(next token) in nats, for tokens 1 .. length-1 of every window."""
    states, truth = hidden.states.flatten(0, 1), _next(ids)
    out = np.empty(len(truth))
    with torch.no_grad():
        for at in _chunks(head, hidden, progress, "scores"):
            z, log_sum, _ = _centred(logits(head, states[at], hidden.dtype))
            out[at] = (log_sum - _pick(z, truth[at].to(z.device))).cpu()
    return _by_window(out, ids)


def divergence(
    base: Hidden,
    base_head: nn.Module,
    other: Hidden,
    other_head: nn.Module,
    ids: Int[Tensor, "rows length"],
    progress: Progress = silent,
) -> Tokens:
    """Compare two models on the same windows from their stored states.

    Raises:
        BadRequest: the vocabularies differ.
    """
    b_states, q_states, truth = base.states.flatten(0, 1), other.states.flatten(0, 1), _next(ids)
    kl, nll_base, nll_other, delta_p = (np.empty(len(truth)) for _ in range(4))
    top_base, top_other = (np.empty(len(truth), np.int64) for _ in range(2))
    with torch.no_grad():
        for at in _chunks(base_head, base, progress, "divergence"):
            b = logits(base_head, b_states[at], base.dtype)
            q = logits(other_head, q_states[at], other.dtype).to(b.device)
            if b.shape != q.shape:
                raise BadRequest(
                    f"vocabularies of {b.shape[1]} and {q.shape[1]} tokens cannot be compared: "
                    "evaluate against the model this one was made from"
                )
            top_base[at], top_other[at] = b.argmax(1).cpu(), q.argmax(1).cpu()
            b, log_b, weight = _centred(b)
            q, log_q, _ = _centred(q)
            x = truth[at].to(b.device)
            l_b, l_q = log_b - _pick(b, x), log_q - _pick(q, x)
            nll_base[at], nll_other[at] = l_b.cpu(), l_q.cpu()
            delta_p[at] = ((-l_q).exp() - (-l_b).exp()).cpu()
            mean_gap = weight.mul_(b.sub_(q)).sum(1, dtype=torch.float64) / log_b.exp()
            kl[at] = (mean_gap - log_b + log_q).clamp_min(0).cpu()  # rounding may give -1e-8
    return Tokens(*(_by_window(column, ids) for column in (kl, nll_base, nll_other, delta_p, top_base, top_other)))


def summarise(tokens: Tokens, draws: Float[np.ndarray, "times windows"]) -> Divergence:
    """The numbers of the report, with block-bootstrap intervals over windows."""
    count = np.full(len(tokens.kl), float(tokens.kl.shape[1]))

    def mean(values: np.ndarray, unit: str) -> Score:
        return block_mean(values.sum(1, dtype=float), count, draws, unit)

    square = mean(np.square(tokens.delta_p), "probability")
    half = 0.5 / math.sqrt(square.value) if square.value > 0 else 0.0
    ladder = block_quantiles(tokens.kl, list(LADDER.values()), draws, "nats")
    return Divergence(
        kl=mean(tokens.kl, "nats"),
        ladder=dict(zip(LADDER, ladder)),
        same_top=mean(tokens.same_top, "share"),
        delta_p_mean=mean(tokens.delta_p, "probability"),
        delta_p_rms=square.map(math.sqrt, half, "probability"),
        broken=int((~np.isfinite(tokens.kl)).sum()),
    )


def _chunks(head: nn.Module, hidden: Hidden, progress: Progress, what: str) -> Iterator[slice]:
    """Slices of the flattened tokens, each with about `CHUNK` logits."""
    size = max(1, CHUNK // logits(head, hidden.states[0, :1], hidden.dtype).shape[1])
    rows, length, _ = hidden.states.shape
    for start in range(0, rows * length, size):
        yield slice(start, min(start + size, rows * length))
        progress(what, min(start + size, rows * length) // length, rows)


def _next(ids: Int[Tensor, "rows length"]) -> Int[Tensor, "tokens"]:
    """The token after each, flattened; a window's last has none, and `_by_window` drops its column."""
    return ids.roll(-1, 1).flatten()


def _by_window(column: Num[np.ndarray, "tokens"], ids: Int[Tensor, "rows length"]) -> Num[np.ndarray, "rows scored"]:
    return column.reshape(ids.shape)[:, :-1]


def _centred(z: Float[Tensor, "n v"]) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n v"]]:
    """Logits minus their maximum (in place), log of the sum of exponentials in fp64, and the exponentials."""
    z -= z.amax(1, keepdim=True)
    weight = z.exp()
    return z, weight.sum(1, dtype=torch.float64).log(), weight


def _pick(z: Float[Tensor, "n v"], truth: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return z.gather(1, truth[:, None])[:, 0].double()
