"""Scans in plain torch: any device. Slow, and the definition of what the others compute."""

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from bitwright.kernels.scanning import FAR, Blocked, Found, Rounded

STEP = 1 << 12  # blocks or documents at a time
LANES = 128  # partial sums of tables
TINY = 2.0**-126  # the least step


def rounded(tables: Float32[Tensor, "q t 16"]) -> Rounded:
    """As scanning.rounded says. Sums are taken in one order and only tensors are divided by, so that no device rounds otherwise."""
    q, t, _ = tables.shape
    if t % 2:
        tables, t = torch.cat([tables, tables.new_zeros(q, 1, 16)], 1), t + 1
    offset = tables.amin(2)
    rest = tables - offset[:, :, None]
    span = rest.amax(2)
    total, pair = summed(span), (span[:, 0::2] + span[:, 1::2]).amax(1)
    step = torch.maximum(pair * (1 / 254), total * (1 / (65534 - t / 2)))
    above = rest - rest[:, :, :1]
    bits = torch.stack([above[:, :, 1 << b] for b in range(4)], 2)
    adds = (spread(bits) - above).abs().amax((1, 2)) <= step * (1 / 64)
    wider = torch.stack([pair * (1 / 251), total * (1 / (65535 - 2 * t)), bits.abs().amax((1, 2)) * (1 / 127)]).amax(0)
    step = torch.where(adds, wider, step)
    least = rest.masked_fill(rest <= 0, torch.inf).amin((1, 2))
    least = torch.where(least.isinf(), 1.0, least)
    whole = (rest / least[:, None, None]).round()
    kept = (whole * least[:, None, None] == rest).flatten(1).all(1) & (pair <= 255 * least) & (whole.amax(2).sum(1) <= 65535)
    step = torch.where(kept, least, step).clamp_min(TINY)
    weights = (bits / step[:, None, None]).round()
    sums = spread(weights) - weights.clamp_max(0).sum(2, keepdim=True)
    values = torch.where(adds[:, None, None], sums, (rest / step[:, None, None]).round())
    mean = halved(tables) * (1 / 16)  # which tables that add up keep
    shift = torch.where(adds[:, None], mean - step[:, None] * (weights.abs().sum(2) * 0.5), offset)
    return Rounded(values.nan_to_num().to(torch.uint8), step + total * 0, summed(shift))


def spread(bits: Float32[Tensor, "q t 4"]) -> Float32[Tensor, "q t 16"]:
    """For every nibble the sum of the numbers of its bits, the lowest bit first."""
    sums = torch.zeros_like(bits[:, :, :1])
    for b in range(4):
        sums = torch.cat([sums, sums + bits[:, :, b : b + 1]], 2)
    return sums


def summed(x: Float32[Tensor, "q t"]) -> Float32[Tensor, "q"]:
    """Lane i adds up x[:, i], x[:, i + LANES], ...; then the lanes are halved."""
    lanes = x.new_zeros(len(x), LANES)
    for part in x.split(LANES, 1):
        lanes[:, : part.shape[1]] += part
    return halved(lanes)


def halved(x: Float32[Tensor, "*rows n"]) -> Float32[Tensor, "*rows"]:
    """The sum over the last axis, n a power of two: its upper half onto its lower half, as often as there are two."""
    while (half := x.shape[-1] // 2) > 0:
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def scan(codes: Blocked, tables: Rounded, k: int, factor: Float[Tensor, "n"] | None, allowed: UInt8[Tensor, "_"] | None) -> Found:
    q, values = len(tables.values), tables.values.int().transpose(1, 2)
    best = nothing(q, codes.device)
    for rows in torch.arange(codes.count, device=codes.device).split(STEP):
        nibbles = codes.nibbles(rows).long()
        sums = torch.stack([own.gather(0, nibbles).sum(1) for own in values]).float() if q else best.scores.new_empty(0, len(rows))
        keys = sums if factor is None else factor[rows].float() * scaled(tables, sums)
        best = better(best, keys, rows, k, allowed)
    found = best if factor is not None else Found(scaled(tables, best.scores), best.rows)
    missing = k - found.rows.shape[1]
    return Found(
        torch.nn.functional.pad(found.scores.masked_fill(found.rows < 0, -torch.inf), (0, missing), value=-torch.inf),
        torch.nn.functional.pad(found.rows, (0, missing), value=-1),
    )


def score(
    codes: Blocked, tables: Float32[Tensor, "q t 16"], rows: Int64[Tensor, "q c"], factor: Float[Tensor, "n"] | None
) -> Float32[Tensor, "q c"]:
    found = torch.full(rows.shape, -torch.inf, device=tables.device)
    for own, here, best in zip(tables, rows, found):
        at = here[here >= 0]
        values = own.T.gather(0, codes.nibbles(at)[:, : len(own)].long()).sum(1)
        best[here >= 0] = values if factor is None else factor[at].float() * values
    return found


def hamming(codes: UInt8[Tensor, "n b"], queries: UInt8[Tensor, "q b"], k: int, allowed: UInt8[Tensor, "_"] | None) -> Found:
    best = nothing(len(queries), codes.device)
    bits = (torch.arange(256, device=codes.device)[:, None] >> torch.arange(8, device=codes.device) & 1).sum(1)
    for rows in torch.arange(len(codes), device=codes.device).split(STEP):
        differ = [bits[(codes[rows] ^ query).int()].sum(1) for query in queries]
        keys = -torch.stack(differ).float() if differ else best.scores.new_empty(0, len(rows))
        best = better(best, keys, rows, k, allowed)
    missing = k - best.rows.shape[1]
    rows = torch.nn.functional.pad(best.rows, (0, missing), value=-1)
    distances = torch.nn.functional.pad(-best.scores, (0, missing)).masked_fill(rows < 0, 0)
    return Found(distances.int().masked_fill(rows < 0, FAR), rows)


def scaled(tables: Rounded, sums: Float[Tensor, "q c"]) -> Float[Tensor, "q c"]:
    return tables.bias[:, None] + tables.scale[:, None] * sums


def nothing(q: int, device: torch.device) -> Found:
    return Found(torch.empty(q, 0, device=device), torch.empty(q, 0, dtype=torch.long, device=device))


def better(best: Found, keys: Float[Tensor, "q c"], rows: Int64[Tensor, "c"], k: int, allowed: UInt8[Tensor, "_"] | None) -> Found:
    """The best k of those found so far and of later rows. The sort is stable, so among equals lower rows stay first."""
    rows = rows.expand(len(keys), -1)
    if allowed is not None:
        refused = (allowed[rows // 8] >> (rows % 8) & 1) == 0
        keys, rows = keys.masked_fill(refused, -torch.inf), rows.masked_fill(refused, -1)
    keys, rows = torch.cat([best.scores, keys], 1), torch.cat([best.rows, rows], 1)
    order = keys.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return Found(keys.gather(1, order), rows.gather(1, order))
