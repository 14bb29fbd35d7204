"""Claim: on the classifiers of the zoo, at 4 and 3 bits per row, what is learned block by block is above nearest rounding and GPTQ
in top-1 accuracy and KL, and CoRa's searched ranks are above uniform ones at equal bytes.

    python bench/vision.py --data DIR [--models zoo:resnet20,zoo:vit] [--cases rtn,...] [--bits 4,3] [--device cpu] [--out FILE]

DIR holds train.npz (calibration) and test.npz (judging). A file that is there is gone on with.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import bitwright
from bitwright import recipes
from bitwright.calibrate.drawn import drawn
from bitwright.measuring import baseline, judged
from bitwright.progress import silent
from bitwright.recipe import Recipe

NAMED = {
    "rtn": partial(recipes.rtn, group=None),
    "gptq": partial(recipes.gptq, group=None),
    "best": partial(recipes.best, group=None),
    **{name: partial(recipes.get(name), group=None) for name in ("adaround", "flexround", "lrq", "adaquant")},
    "tuned": partial(recipes.tuned, group=None),
    "cora": recipes.cora,
    "cora-uniform": partial(recipes.cora, uniform=True),
    "cora-rows": partial(recipes.cora, per_row=True),
    "cora-rows-uniform": partial(recipes.cora, per_row=True, uniform=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", default="zoo:resnet20,zoo:vit")
    parser.add_argument("--cases", default=",".join(NAMED))
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--judge", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("vision.jsonl"))
    args = parser.parse_args()
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    finished = {(row["model"], row["case"], row["bits"], row["seed"]) for row in done}
    for model in args.models.split(","):
        rows = drawn(model, str(args.data / "test.npz"), args.judge, 0, "evaluation")
        base = baseline(model, rows, silent)
        for seed in map(int, args.seeds.split(",")):
            data = bitwright.calibration(model, str(args.data / "train.npz"), samples=args.samples, seed=seed)
            for bits in map(int, args.bits.split(",")):
                for case in args.cases.split(","):
                    if (model, case, bits, seed) in finished:
                        continue
                    recipe: Recipe = NAMED[case](bits)
                    begun = time.perf_counter()
                    small, report = bitwright.compress(model, recipe, data, device=args.device, batch=64)
                    seconds, found = time.perf_counter() - begun, judged(small, base, rows, silent)
                    kl, top = found.divergence.kl, found.tasks[0]
                    row = {
                        "model": model, "case": case, "bits": bits, "seed": seed, "bpw": report.bpw_linears, "bytes": report.bytes,
                        "kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "top1": top.accuracy,
                        "seconds": seconds, "notes": list(report.fallbacks[:2]), "device": args.device,
                    }  # fmt: skip
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{model:14} {case:20} {bits} bits {row['bpw']:6.3f} bpw  KL {kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}]"
                          f"  top-1 {top.accuracy:.2%}  {seconds:.0f} s  {row['notes'][:1]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
