"""Claim: in the same format, at the same size, our NVFP4, MXFP4 and W4A16 of zoo:lm have a lower KL to the original than
llm-compressor's, nearest rounding and GPTQ, with the same 128 x 512 calibration tokens.

    make a peer environment as bench/peers/README.md says, then: python bench/micro_kl.py [--schemes NVFP4A16,MXFP4A16,W4A16]

The peer's directories are opened by our own reader, so that codes are compared and not engines. KL is on the evaluation half of the
standard library; differences are paired by window, with block-bootstrap intervals. JSON goes to bench/results/.
"""

import argparse
import datetime
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import bitwright
from bitwright import recipes, zoo
from bitwright.calibrate.text import text_windows
from bitwright.evaluation import Baseline, evaluate
from bitwright.evaluation.evaluation import paired

HERE = Path(__file__).parent


def peer(python: Path, tokens: Path, out: Path, scheme: str, rounding: str) -> Path:
    script = HERE / "peers" / "llmcompressor_scheme.py"
    told = ["--model", zoo.path("lm"), "--tokens", tokens, "--out", out, "--scheme", scheme, "--rounding", rounding]
    done = subprocess.run([python, script, *map(str, told)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", type=Path, default=HERE.parent / ".venv-peers" / "llmcompressor" / "bin" / "python")
    parser.add_argument("--schemes", default="NVFP4A16,MXFP4A16,W4A16")
    args = parser.parse_args()
    data = bitwright.calibration("zoo:lm")
    base = Baseline.of(bitwright.load("zoo:lm"), text_windows("zoo:lm", "stdlib", 96, 512, "evaluation"))
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        tokens = Path(tmp) / "tokens.safetensors"
        save_file({"input_ids": data.ids}, tokens)
        for scheme in args.schemes.split(","):
            rows += compared(scheme, args.peer, tokens, Path(tmp), data, base)
    found = {
        "date": datetime.date.today().isoformat(),
        "calibration": "128 x 512 stdlib",
        "evaluation": "96 x 512 stdlib",
        "rows": rows,
    }
    (HERE / "results" / f"micro_kl-{found['date']}.json").write_text(json.dumps(found, indent=1) + "\n")


def compared(scheme: str, python: Path, tokens: Path, tmp: Path, data: Any, base: Any) -> list[dict[str, Any]]:
    """One scheme: the peer's two roundings and our three, each against our `best`."""
    made = {}
    for rounding in ("nearest", "gptq"):
        root = peer(python, tokens, tmp / f"{scheme}-{rounding}", scheme, rounding)
        made[f"llm-compressor {rounding}"] = evaluate(bitwright.load(root), base)
    for rounding in ("nearest", "gptq", "best"):
        small, _ = bitwright.compress("zoo:lm", recipes.get(scheme)(rounding=rounding), data, form="compressed-tensors")
        made[f"ours {rounding}"] = evaluate(small, base)
    rows = []
    for name, one in made.items():
        gap = paired(made["ours best"], one)
        rows.append(
            {"scheme": scheme, "who": name, "kl": one.divergence.kl.value, "best minus this": [gap.low, gap.value, gap.high]}
        )
        print(f"{scheme:10} {name:24} KL {rows[-1]['kl']:.5f}   ours best minus this {gap.low:+.5f} .. {gap.high:+.5f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
