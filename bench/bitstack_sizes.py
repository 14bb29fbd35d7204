"""Claim: one BitStack artefact of zoo:lm, loaded at the bytes of GPTQ, nearest rounding or plain SVD, ...

python bench/bitstack_sizes.py [--samples 128] [--judge 48]      JSON goes to bench/results/
"""

import argparse
import datetime
import json
import platform
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

import bitwright
from bitwright import recipes, zoo
from bitwright.allocation.stack import Stack
from bitwright.calibrate.text import text_windows
from bitwright.evaluation import Baseline, Evaluation, evaluate, paired
from bitwright.export.native import open_sized
from bitwright.stacks import reorder

MODEL = "zoo:lm"
WEIGHTS, KEPT = 5_898_240, 2_103_808  # of the linears; bytes of what stays as it is
ORDERS = {"sensitivity": Stack(), "errors": Stack("errors"), "sensitivity, gap 2": Stack(gap=2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--judge", type=int, default=48)
    args = parser.parse_args()
    text = bitwright.calibration(MODEL, samples=args.samples)
    judge = text_windows(MODEL, "stdlib", args.judge, 512, "evaluation")
    base = Baseline.of(bitwright.load(zoo.path("lm")), judge, AutoTokenizer.from_pretrained(zoo.path("lm")))
    results, work = [], Path(tempfile.mkdtemp())
    stats = work / "stats"

    def line(kind: str, model: torch.nn.Module, size: int, seconds: float) -> Evaluation:
        found = evaluate(model, base)
        kl, bpw = found.divergence.kl, 8 * (size - KEPT) / WEIGHTS
        results.append({"kind": kind, "bytes": size, "bpw": bpw, "kl": kl.value, "kl_low": kl.low, "kl_high": kl.high,
                        "ppl": found.perplexity.other.value, "seconds": seconds})  # fmt: skip
        print(f"{kind:36} {size:9,} bytes {bpw:6.3f} bpw  KL {kl.value:8.5f} [{kl.low:.5f}, {kl.high:.5f}]  perplexity "
              f"{found.perplexity.other.value:9.2f}  {seconds:.1f} s", flush=True)  # fmt: skip
        return found

    stacks = {"signs": recipes.bitstack(steps=8), "2 bits, then signs": recipes.bitstack(steps=6, bits=2, group=128)}
    for name, recipe in stacks.items():
        bitwright.compress(MODEL, recipe, text, out=work / name, stats=stats)
    peers = {
        **{f"nearest {b} bits, g128": recipes.rtn(bits=b, group=128) for b in (2, 3, 4)},
        **{f"GPTQ {b} bits, g128": recipes.gptq(bits=b, group=128) for b in (2, 3, 4)},
    }
    for name, recipe in peers.items():
        begun = time.perf_counter()
        small, report = bitwright.compress(MODEL, recipe, text, stats=stats)
        before = line(name, small, report.bytes, time.perf_counter() - begun)
        for stack in stacks:
            for by, order in ORDERS.items():
                if by != "sensitivity" and (stack != "signs" or name.startswith("nearest")):
                    continue
                reorder(work / stack, text.ids[:8], order)
                begun = time.perf_counter()
                try:
                    loaded = bitwright.load(work / stack, size=report.bytes)
                except bitwright.BadRequest as why:
                    print(f"    {stack}: {why}")
                    continue
                took = sum(e.bytes for e in open_sized(work / stack, report.bytes).entries)
                after = line(f"    {stack}, by {by}", loaded, took, time.perf_counter() - begun)
                gap = paired(after, before)
                results[-1] |= {"against": name, "difference": gap.value, "low": gap.low, "high": gap.high}
    where = Path(__file__).parent / "results" / f"bitstack_sizes-{datetime.date.today()}.json"
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    told = {
        "claim": __doc__.split("\n\n")[0],
        "floor": base.floor.kl,
        "machine": machine,
        "samples": args.samples,
        "judge": args.judge,
    }
    where.write_text(json.dumps({**told, "results": results}, indent=1))


if __name__ == "__main__":
    main()
