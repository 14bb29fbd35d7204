"""Claim: on two CPU cores, same model (zoo:lm), same 128 x 512 calibration tokens, 4 bits asymmetric, groups of 32: our whole run
takes at most 0.7 of llm-compressor 0.14.0.1's wall time, and our mean KL to the original is not higher.

    make a peer environment as bench/peers/README.md says, then: python bench/road_cpu.py [--runs 3]

Both sides are whole processes, from start to written directory, run in turn; times are medians, the ratio is of pairs. KL is on the
evaluation half of the standard library, which neither side is calibrated on. Ours is timed with the peer's method (`gptq`, its
defaults) and with our default (`best`). JSON goes to bench/results/.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BITS, GROUP, ROWS, LENGTH = 4, 32, 128, 512


def ours(tokens: Path, out: Path, recipe: str) -> list[str]:
    return [sys.executable, str(HERE / "ours_gptq.py"), "--tokens", str(tokens), "--out", str(out), "--recipe", recipe]


def peer(python: Path, model: Path, tokens: Path, out: Path, dtype: str, dense: bool = False) -> list[str]:
    extra = ["--dense", f"{out}-dense"] if dense else []
    script = HERE / "peers" / "llmcompressor_gptq.py"
    return [str(python), str(script), "--model", str(model), "--tokens", str(tokens), "--out", str(out), "--bits", str(BITS),
            "--group", str(GROUP), "--asymmetric", "--dtype", dtype, "--json", f"{out}.json", *extra]  # fmt: skip


def timed(command: list[str], out: Path) -> float:
    for left in (out, Path(f"{out}-dense")):
        shutil.rmtree(left, ignore_errors=True)
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=HERE.parent / ".venv-peers" / "llmcompressor" / "bin" / "python")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtypes", default="auto,float32", help="types the peer loads the model in")
    args = parser.parse_args()
    if not args.peer.exists():
        sys.exit(f"There is no peer environment at {args.peer}; make it as bench/peers/README.md says.")

    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    import bitwright
    from bitwright import zoo
    from bitwright.evaluation import Baseline, evaluate, paired
    from bitwright.job import text_windows

    work = Path(tempfile.mkdtemp(prefix="road_cpu."))
    tokens = work / "tokens.safetensors"
    save_file({"input_ids": bitwright.calibration("zoo:lm", samples=ROWS, length=LENGTH).ids.long()}, tokens)
    commands = {f"ours {r}": (ours(tokens, work / f"ours-{r}", r), work / f"ours-{r}") for r in ("gptq", "best")}
    for dtype in args.dtypes.split(","):
        commands[f"llm-compressor {dtype}"] = (
            peer(args.peer, zoo.path("lm"), tokens, work / f"peer-{dtype}", dtype),
            work / f"peer-{dtype}",
        )
    for command, out in commands.values():  # warm-up: caches of compiled code and of files
        timed(command, out)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, (command, out) in commands.items():
            seconds[name].append(timed(command, out))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min((n for n in median if n.startswith("llm")), key=lambda n: median[n])

    judge = text_windows("zoo:lm", "stdlib", 96, LENGTH, "evaluation")
    base = Baseline.of(bitwright.load(zoo.path("lm")), judge, AutoTokenizer.from_pretrained(zoo.path("lm")), noise_floor=False)
    found = {}
    for name, (_, out) in commands.items():
        where = out
        if name.startswith("llm"):
            where = Path(f"{out}-dense")
            timed(peer(args.peer, zoo.path("lm"), tokens, out, name.split()[1], dense=True), out)
        found[name] = evaluate(bitwright.load(where), base)
    results = []
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[fastest]))
        gap = paired(found[name], found[fastest])
        kl = found[name].divergence.kl
        results.append({"name": name, "seconds": times, "median": median[name], "ratio": ratio, "kl": kl.value, "kl_low": kl.low,
                        "kl_high": kl.high, "kl_minus_peer": gap.value, "low": gap.low, "high": gap.high})  # fmt: skip
        print(f"{name:26} {median[name]:7.1f} s  ratio {ratio:5.2f}  KL {kl.value:.5f} [{kl.low:.5f}, {kl.high:.5f}]  "
              f"minus peer {gap.value:+.5f} [{gap.low:+.5f}, {gap.high:+.5f}]")  # fmt: skip
    holds = {r["name"]: r["ratio"] <= 0.7 and r["kl_minus_peer"] <= 0 for r in results if r["name"].startswith("ours")}
    print(f"against {fastest}: " + ", ".join(f"{n} {'holds' if h else 'DOES NOT HOLD'}" for n, h in holds.items()))
    where = HERE / "results" / f"road_cpu-{datetime.date.today()}.json"
    where.parent.mkdir(exist_ok=True)
    details = {n: json.loads(Path(f"{o}.json").read_text()) for n, (_, o) in commands.items() if n.startswith("llm")}
    where.write_text(
        json.dumps(
            {
                "claim": __doc__.split("\n\n")[0],
                "against": fastest,
                "holds": holds,
                "results": results,
                "peer": details,
            },
            indent=1,
        )
    )
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
