"""Claim: on zoo:lm at 4, 3 and 2 bits, groups of 64, mean KL of best < gptq < rtn(mse) <= rtn(absmax), with the differences
outside the paired 95 % interval at 3 and 2 bits; and GPTQ on trit-planes is below trit-planes rounded to nearest.

    python bench/zoo_order.py [--samples 128] [--judge 96]      about ten minutes on two cores; JSON goes to bench/results/
"""

import argparse
import datetime
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

import bitwright
from bitwright import recipes, zoo
from bitwright.calibrate.text import text_windows
from bitwright.evaluation import Baseline, Evaluation, evaluate, paired
from bitwright.rounding.gptq import GPTQ

MODEL = "zoo:lm"


def chosen(bits: int) -> dict[str, bitwright.Recipe]:
    return {
        "rtn(absmax)": recipes.rtn(bits, 64, mse=False),
        "rtn(mse)": recipes.rtn(bits, 64),
        "gptq": recipes.gptq(bits, 64),
        "best": recipes.best(bits, 64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--judge", type=int, default=96)
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--all", action="store_true", help="also the other recipes")
    args = parser.parse_args()
    text = bitwright.calibration(MODEL, samples=args.samples)
    judge = text_windows(MODEL, "stdlib", args.judge, 512, "evaluation")
    base = Baseline.of(bitwright.load(zoo.path("lm")), judge, AutoTokenizer.from_pretrained(zoo.path("lm")))
    results, holds = [], True

    def measure(name: str, recipe: bitwright.Recipe) -> Evaluation:
        model, report = bitwright.compress(MODEL, recipe, text)
        found = evaluate(model, base)
        kl = found.divergence.kl
        row = {
            "recipe": name, "bpw_linears": report.bpw_linears, "bpw": report.bpw_everything, "bytes": report.bytes,
            "kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "kl_999": found.divergence.ladder["99.9"].value,
            "same_top": found.divergence.same_top.value, "ppl": found.perplexity.other.value,
            "ppl_base": found.perplexity.base.value, "seconds": report.seconds,
        }  # fmt: skip
        results.append(row)
        print(f"{name:28} {row['bpw_linears']:6.3f} bpw  KL {kl.value:.5f} [{kl.low:.5f}, {kl.high:.5f}]  "
              f"same top {row['same_top']:.4f}  PPL {row['ppl']:.3f} ({row['ppl_base']:.3f})  {row['seconds']:.0f} s")  # fmt: skip
        return found

    def below(name: str, a: Evaluation, b: Evaluation, strictly: bool) -> None:
        nonlocal holds
        gap = paired(a, b)
        fine = gap.high < 0 if strictly else gap.value <= 0
        holds &= fine
        results.append({"order": name, "difference": gap.value, "low": gap.low, "high": gap.high, "holds": fine})
        print(f"  {name:40} {gap.value:+.5f} [{gap.low:+.5f}, {gap.high:+.5f}]  {'holds' if fine else 'DOES NOT HOLD'}")

    for bits in map(int, args.bits.split(",")):
        found = {name: measure(f"{name} {bits} bits", recipe) for name, recipe in chosen(bits).items()}
        outside = bits < 4
        below(f"best < gptq at {bits} bits", found["best"], found["gptq"], outside)
        below(f"gptq < rtn(mse) at {bits} bits", found["gptq"], found["rtn(mse)"], outside)
        below(f"rtn(mse) <= rtn(absmax) at {bits} bits", found["rtn(mse)"], found["rtn(absmax)"], outside)
    plain, better = (
        measure(f"ptqtp + {n}", recipes.ptqtp(2, 64, r)) for n, r in (("nearest", recipes.rtn().rounding), ("gptq", GPTQ()))
    )
    below("ptqtp + gptq < ptqtp + nearest", better, plain, True)
    if args.all:
        for bits in (4, 3, 2):
            measure(f"quantease {bits} bits", recipes.quantease(bits, 64))
            measure(f"quantease-outlier {bits} bits", recipes.quantease_outlier(bits, 64))
            measure(f"zeroquant-v2 {bits} bits", recipes.zeroquant_v2(bits, 64))
            measure(f"rtn g32 {bits} bits", recipes.rtn(bits, 32))
        measure("ptqtp 3 planes", recipes.ptqtp(3, 128))
        measure("best 3 bits with head", replace(recipes.best(3, 64), head=True))
    print(f"floor: KL {base.floor.kl:.6f}   the claim {'holds' if holds else 'DOES NOT HOLD'}")
    where = Path(__file__).parent / "results" / f"zoo_order-{datetime.date.today()}.json"
    where.parent.mkdir(exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    where.write_text(json.dumps({"claim": __doc__.split("\n\n")[0], "holds": holds, "floor": base.floor.kl, "machine": machine,
                                 "samples": args.samples, "judge": args.judge, "results": results}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
