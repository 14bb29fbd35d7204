"""Claim: at equal stored bits the best recipe of bitwright has at most half the KL of GPTQ at 2 to 2.25 bits per weight and at most
0.75 of it at 3; and which published orders between methods hold.

    python bench/methods.py [--model zoo:lm] [--budgets 2,2.25,3,4] [--cases gptq,best,...] [--seeds 0] [--device cpu] [--out FILE]

Every line of the output file is one run: stored bits, KL with its interval, perplexity on three texts, flips, seconds, peak memory.
A file that is there is gone on with. Methods on grids of one size only are run at that size and compared by the bits they store.
"""

import argparse
import inspect
import json
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import bitwright
from bitwright import recipes
from bitwright.calibrate.text import text_windows
from bitwright.checkpoint import locate, open_checkpoint, whole
from bitwright.coded import CodedLinear
from bitwright.evaluation import Baseline, evaluate
from bitwright.recipe import Recipe
from bitwright.terms.base import decode

GROUP, LENGTH = 64, 512
TRAINED = ("adaround", "flexround", "lrq", "adaquant")
NAMED: dict[str, dict[str, Any]] = {  # case -> options of the recipe of the same name, or of the one after the dash
    "rtn": {},
    "gptq": {},
    "best": {},
    "quantease": {},
    **{name: {"start": "nearest"} for name in TRAINED},
    **{f"best-{name}": {"start": "best"} for name in TRAINED},
    "discquant": {},
    "discquant-clip1": {"clip": 1.0},
    "pv-tuning": {"rate": 3e-3},
    "straight-through": {"share": 1.0, "rate": 3e-3},
    "parameters": {"share": 0.0},
    "tuned": {},
    "tuned-blocks": {"whole": False},
    "baq": {},
    "baq-improved": {"improved": True},
    "cvxq": {"group": 64},
}
OWN = (  # at the rates they have, next to the budget
    "squeezellm", "spqr", "adadim", "hqq", "quantease-outlier", "zeroquant-v2", "bitmod", "ptqtp", "aqlm", "vq4dit", "db-llm",
    "fairy2i", "ptq1-61", "fast-2bit", "cora",
)  # fmt: skip
AS = {
    "discquant-clip1": "discquant",
    "straight-through": "pv-tuning",
    "parameters": "pv-tuning",
    "baq-improved": "baq",
    "tuned-blocks": "tuned",
}


def recipe_of(case: str, budget: float) -> Recipe:
    """The recipe with as many levels as the budget pays for, mixed over the layers to meet it."""
    name, _, options = case.partition(":")
    wanted = dict(NAMED.get(name, {}))
    for pair in filter(None, options.split(",")):
        key, _, value = pair.partition("=")
        wanted[key] = json.loads(value)
    make = recipes.get(AS.get(name, name.removeprefix("best-")))
    if name in OWN:
        return make(**{"bits": round(budget), **wanted} if "bits" in inspect.signature(make).parameters else wanted)
    if name not in ("baq", "baq-improved", "cvxq"):
        wanted.setdefault("group", 128 if budget == 2.25 else GROUP)  # 2 bits and what 128 share are 2.14
    return replace(make(**wanted), budget=budget)


def dense(model: torch.nn.Module, source: Any, device: str) -> torch.nn.Module:
    """The same function as plain matrices, where an evaluation is fast."""
    plain = whole(source)
    for name, module in model.named_modules():
        if isinstance(module, CodedLinear):
            plain.get_submodule(name).weight = torch.nn.Parameter(decode(module.decoded()), requires_grad=False)
    return plain.to(device)


def forget_peaks() -> None:
    """The high-water marks of the process (Linux) and of the card begin anew."""
    with suppress(OSError):  # where it may not be written, the peak is that of all runs so far
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:lm")
    parser.add_argument("--budgets", default="2,2.25,3,4")
    parser.add_argument("--cases", default=",".join(NAMED))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--judge", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--texts", default="", help="files; perplexity and KL on 32 windows of each are added")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("methods.jsonl"))
    args = parser.parse_args()
    source = open_checkpoint(args.model)
    tokenizer = AutoTokenizer.from_pretrained(locate(args.model))
    judge = text_windows(args.model, "stdlib", args.judge, LENGTH, "evaluation")
    base = Baseline.of(whole(source).to(args.device), judge, tokenizer, batch=16)
    others = {
        Path(text).stem: Baseline.of(
            whole(source).to(args.device), text_windows(args.model, text, 32, LENGTH, "evaluation"), batch=16, noise_floor=False
        )
        for text in filter(None, args.texts.split(","))
    }
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    finished = {(row["case"], row["budget"], row["seed"]) for row in done}
    cases = [case.replace(";", ",") for case in args.cases.split(",")]
    for budget in map(float, args.budgets.split(",")):
        for case in cases:
            for seed in map(int, args.seeds.split(",")):
                if (case, budget, seed) in finished:
                    continue
                text = bitwright.calibration(args.model, samples=args.samples, seed=seed)
                forget_peaks()
                begun = time.perf_counter()
                recipe = recipe_of(case, budget)
                model, report = bitwright.compress(args.model, recipe, text, device=args.device, batch=args.batch)
                seconds = time.perf_counter() - begun
                card = torch.cuda.max_memory_allocated() if args.device != "cpu" else 0
                plain = dense(model, source, args.device)
                found = evaluate(plain, base, batch=16)
                read = {name: evaluate(plain, other, batch=16) for name, other in others.items()}
                kl = found.divergence.kl
                row = {
                    "case": case, "budget": budget, "seed": seed, "bpw": report.bpw_linears, "bytes": report.bytes, "kl": kl.value,
                    "kl_low": kl.low, "kl_high": kl.high, "kl_999": found.divergence.ladder["99.9"].value,
                    "ppl": found.perplexity.other.value, "ppl_base": found.perplexity.base.value,
                    "same_top": found.divergence.same_top.value,
                    "flips": {task.name: asdict(task.flips) for task in found.tasks if task.flips},
                    "texts": {n: {"ppl": r.perplexity.other.value, "kl": r.divergence.kl.value} for n, r in read.items()},
                    "seconds": seconds, "peak": report.peak, "peak_card": card, "device": args.device,
                    "window_kl": list(found.window_kl),
                    "notes": list(report.fallbacks[:2]),
                }  # fmt: skip
                with args.out.open("a") as file:
                    file.write(json.dumps(row, default=str) + "\n")
                print(f"{case:28} {budget:5.2f} {row['bpw']:6.3f} bpw  KL {kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}]  "
                      f"PPL {row['ppl']:.3f}  {seconds:.0f} s  {row['notes'][:1]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
