"""Scans in plain torch: any device. Slow, and the definition of what the others compute."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from bitwright.kernels.scanning import FAR, Blocked, Found, Rounded

STEP = 1 << 12  # blocks or documents at a time


def scan(codes: Blocked, tables: Rounded, k: int, factor: Float[Tensor, "n"] | None, allowed: UInt8[Tensor, "_"] | None) -> Found:
    q, values = len(tables.values), tables.values.int().transpose(1, 2)
    best = nothing(q, codes.device)
    for rows in torch.arange(codes.count, device=codes.device).split(STEP):
        nibbles = codes.nibbles(rows).long()
        sums = torch.stack([own.gather(0, nibbles).sum(1) for own in values]).float() if q else best.scores.new_empty(0, len(rows))
        keys = sums if factor is None else factor[rows].float() * score(tables, sums)
        best = better(best, keys, rows, k, allowed)
    found = best if factor is not None else Found(score(tables, best.scores), best.rows)
    missing = k - found.rows.shape[1]
    return Found(
        torch.nn.functional.pad(found.scores.masked_fill(found.rows < 0, -torch.inf), (0, missing), value=-torch.inf),
        torch.nn.functional.pad(found.rows, (0, missing), value=-1),
    )


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


def score(tables: Rounded, sums: Float[Tensor, "q c"]) -> Float[Tensor, "q c"]:
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
