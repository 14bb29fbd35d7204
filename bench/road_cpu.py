"""Claim: on two CPU cores, same model, same 128 x 512 calibration tokens, 4 bits asymmetric, groups of 32: our whole run takes at
most 0.45 of llm-compressor 0.14.0.1's wall time, at a mean KL to the original that is not higher, and at most 1.35 times the floor:
one forward pass and each Gram matrix of a shared input once.

    make a peer environment as bench/peers/README.md says, then: python bench/road_cpu.py [--runs 3] [--model zoo:lm|random]

`random`: a Llama of 40 M random parameters (hidden 512, 12 layers), with the tokenizer of zoo:lm.

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
from typing import Any

HERE = Path(__file__).parent
BITS, GROUP, ROWS, LENGTH = 4, 32, 128, 512


def ours(model: Path, tokens: Path, out: Path, recipe: str) -> list[str]:
    script = HERE / "ours_gptq.py"
    return [sys.executable, str(script), "--model", str(model), "--tokens", str(tokens), "--out", str(out), "--recipe", recipe]


def random_llama(where: Path) -> Path:
    """40 M parameters, saved with the tokenizer of zoo:lm."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from bitwright import zoo

    tokenizer = AutoTokenizer.from_pretrained(zoo.path("lm"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.04,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def floor(model: Path, ids: Any) -> dict[str, float]:
    """Seconds of one forward pass in batches of 4 rows, and of X^T X of every input that linears share."""
    import torch

    import bitwright

    torch.set_num_threads(2)
    net = bitwright.load(str(model)).eval()
    inputs: dict[int, torch.Tensor] = {}
    grams: dict[str, float] = {"forward": 0.0, "grams": 0.0}

    def seen(_: Any, given: tuple[Any, ...]) -> None:
        inputs[id(given[0])] = given[0]

    hooks = [m.register_forward_pre_hook(seen) for n, m in net.named_modules() if type(m) is torch.nn.Linear and "lm_head" not in n]
    with torch.no_grad():
        for warm in (True, False):
            for start in range(0, 8 if warm else len(ids), 4):
                inputs.clear()
                begun = time.perf_counter()
                net.model(ids[start : start + 4])
                middle = time.perf_counter()
                for x in inputs.values():
                    flat = x.reshape(-1, x.shape[-1])
                    flat.T @ flat
                if not warm:
                    grams["forward"] += middle - begun
                    grams["grams"] += time.perf_counter() - middle
    for hook in hooks:
        hook.remove()
    return grams


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
    parser.add_argument("--model", default="zoo:lm", choices=["zoo:lm", "random"])
    parser.add_argument("--dtypes", default="auto,float32", help="types the peer loads the model in")
    args = parser.parse_args()
    if not args.peer.exists():
        sys.exit(f"There is no peer environment at {args.peer}; make it as bench/peers/README.md says.")

    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    import bitwright
    from bitwright import zoo
    from bitwright.calibrate.text import text_windows
    from bitwright.evaluation import Baseline, evaluate, paired

    work = Path(tempfile.mkdtemp(prefix="road_cpu."))
    tokens, model = work / "tokens.safetensors", zoo.path("lm") if args.model == "zoo:lm" else random_llama(work / "random")
    ids = bitwright.calibration("zoo:lm", samples=ROWS, length=LENGTH).ids.long()
    save_file({"input_ids": ids}, tokens)
    commands = {f"ours {r}": (ours(model, tokens, work / f"ours-{r}", r), work / f"ours-{r}") for r in ("gptq", "best")}
    for dtype in args.dtypes.split(","):
        commands[f"llm-compressor {dtype}"] = (
            peer(args.peer, model, tokens, work / f"peer-{dtype}", dtype),
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

    least = floor(model, ids)
    print(f"floor: forward {least['forward']:.1f} s, Gram matrices {least['grams']:.1f} s")
    judge = text_windows("zoo:lm", "stdlib", 96, LENGTH, "evaluation")
    base = Baseline.of(bitwright.load(str(model)), judge, AutoTokenizer.from_pretrained(zoo.path("lm")), noise_floor=False)
    found = {}
    for name, (_, out) in commands.items():
        where = out
        if name.startswith("llm"):
            where = Path(f"{out}-dense")
            timed(peer(args.peer, model, tokens, out, name.split()[1], dense=True), out)
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
    holds = {r["name"]: r["ratio"] <= 0.45 and r["kl_minus_peer"] <= 0 for r in results if r["name"].startswith("ours")}
    print(f"against {fastest}: " + ", ".join(f"{n} {'holds' if h else 'DOES NOT HOLD'}" for n, h in holds.items()))
    where = HERE / "results" / f"road_cpu-{args.model.split(':')[-1]}-{datetime.date.today()}.json"
    where.parent.mkdir(exist_ok=True)
    details = {n: json.loads(Path(f"{o}.json").read_text()) for n, (_, o) in commands.items() if n.startswith("llm")}
    where.write_text(
        json.dumps(
            {
                "claim": __doc__.split("\n\n")[0],
                "against": fastest,
                "holds": holds,
                "floor": least,
                "results": results,
                "peer": details,
            },
            indent=1,
        )
    )
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
