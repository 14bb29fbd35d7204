"""Claim: a million vectors of 384 dimensions are encoded per minute and more, on two threads, at 1 and 2 bits, by the codec without
training and by the default one.

    OMP_NUM_THREADS=2 NUMBA_NUM_THREADS=2 python bench/index_encode.py [--n 200000] [--codecs rotated,additive] [--bits 1,2]

Random vectors whose directions are of unequal size; the codec is fitted on 20,000 of them. Fitting is timed beside, adding to an
index (encoding, checking, packing) is what counts. Writes bench/results/index_encode-DATE.json.
"""

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import torch

from bitwright.embed import codecs
from bitwright.embed.index import Index

DIM, BAR, PART = 384, 1e6, 1 << 16


def vectors(n: int) -> torch.Tensor:
    gen = torch.Generator().manual_seed(0)
    return torch.randn(n, DIM, generator=gen) * torch.logspace(0, -1, DIM) + 0.1


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--n", type=int, default=200_000)
    ask.add_argument("--codecs", default="rotated,additive")
    ask.add_argument("--bits", default="1,2")
    args = ask.parse_args()
    x, found = vectors(args.n), {}
    for name in args.codecs.split(","):
        for bits in map(float, args.bits.split(",")):
            start = time.perf_counter()
            codec = codecs.fit(x[:20_000], bits, name)
            fitted, index = time.perf_counter() - start, Index.empty(codec)
            index.add(x[:1000])  # compiles
            start = time.perf_counter()
            for part in x[1000:].split(PART):
                index.add(part)
            rate = 60 * (args.n - 1000) / (time.perf_counter() - start)
            found[f"{name} {bits:g}"] = {"vectors_per_minute": round(rate), "fit_seconds": round(fitted, 2)}
            print(f"{name} {bits:g} bits: {rate / 1e6:.2f} million vectors a minute, fitted in {fitted:.1f} s", flush=True)
    about = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "dim": DIM, "n": args.n}
    place = Path(__file__).parent / "results" / f"index_encode-{datetime.date.today()}.json"
    place.write_text(json.dumps({"claim": BAR, **about, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
