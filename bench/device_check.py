"""Claim: the same recipe gives the same model on an accelerator as on the CPU, up to rounding of the sums: KL within 5 %.

python bench/device_check.py --devices cpu,cuda --json FILE
"""

import argparse
import json
import time

import torch
from transformers import AutoTokenizer

import bitwright
from bitwright import recipes, zoo
from bitwright.calibrate.text import text_windows
from bitwright.evaluation import Baseline, evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="cpu,cuda")
    parser.add_argument("--json")
    args = parser.parse_args()
    text = bitwright.calibration("zoo:lm", samples=64)
    judge = text_windows("zoo:lm", "stdlib", 48, 512, "evaluation")
    base = Baseline.of(bitwright.load("zoo:lm"), judge, AutoTokenizer.from_pretrained(zoo.path("lm")), noise_floor=False)
    rows = []
    made = {name: recipes.get(name)(bits=3, group=64) for name in ("best", "zeroquant-v2", "quantease-outlier")}
    made |= {name: recipes.get(name)(rounding="best") for name in ("q3-k", "nvfp4a16", "w8a8")}
    for name, recipe in made.items():
        for device in args.devices.split(","):
            begun = time.perf_counter()
            model, report = bitwright.compress("zoo:lm", recipe, text, device=device)
            kl = evaluate(model, base).divergence.kl.value
            rows.append({"recipe": name, "device": device, "kl": kl, "bytes": report.bytes, "seconds": report.seconds})
            print(
                f"{name:20} {device:5} KL {kl:.5f}  {report.seconds:.1f} s  ({time.perf_counter() - begun:.1f} s with evaluation)"
            )
    found = {r["recipe"]: [x["kl"] for x in rows if x["recipe"] == r["recipe"]] for r in rows}
    holds = all(max(kl) / min(kl) < 1.05 for kl in found.values())
    print("holds" if holds else "DOES NOT HOLD", torch.__version__)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"claim": __doc__.split("\n\n")[0], "holds": holds, "torch": torch.__version__, "results": rows}, file, indent=1
            )


if __name__ == "__main__":
    main()
