"""Claim: an export computes what was judged. On zoo:lm the logits of onnxruntime and OpenVINO in fp32 differ from bitwright's by a
mean KL below 1e-7 over rows of 512 tokens; what their defaults add is printed beside it.

    python bench/engines.py      a minute on one core; JSON goes to bench/results/
"""

import datetime
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch

import bitwright
from bitwright import recipes
from bitwright.calibrate.text import text_windows
from bitwright.convert import convert
from bitwright.ledger import ledger

FP32 = "session.qdq_matmulnbits_accuracy_level"
Run = Callable[[np.ndarray], np.ndarray]


def onnx(path: Path, exact: bool) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if exact:
        options.add_session_config_entry(FP32, "1")
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"input_ids": ids})[0]


def vino(path: Path, exact: bool, group: int | None = None) -> Run:
    told = {"INFERENCE_NUM_THREADS": 1} | ({"INFERENCE_PRECISION_HINT": "f32"} if exact else {})
    told |= {} if group is None else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
    compiled = openvino.Core().compile_model(path / "openvino_model.xml", "CPU", told)
    return lambda ids: compiled({"input_ids": ids})[0]


def main() -> None:
    torch.set_num_threads(1)
    ids = text_windows("zoo:lm", "stdlib", 4, 512, "evaluation").ids.numpy()
    results, holds = [], True
    chosen = {
        "4 bits, groups of 64": recipes.rtn(4, 64), "4 bits, groups of 32, symmetric": recipes.rtn(4, 32, True),
        "2 bits, groups of 64": recipes.rtn(2, 64), "8 bits, channels": recipes.rtn(8, None, True),
    }  # fmt: skip
    for name, recipe in chosen.items():
        folder = Path(tempfile.mkdtemp())
        model, _ = bitwright.compress("zoo:lm", recipe, out=folder / "native")
        for form in ("onnx", "onnx-qdq", "openvino"):
            convert(folder / "native", form, folder / form)
        runs: dict[str, tuple[Path, Run]] = {
            "bitwright": (folder / "native", lambda ids: model(torch.from_numpy(ids)).logits.numpy())  # noqa: B023
        }
        for form, engine in (("onnx", onnx), ("onnx-qdq", onnx), ("openvino", vino)):
            for way, exact in (("fp32", True), ("as it comes", False)):
                runs[f"{form}, {way}"] = folder / form, engine(folder / form, exact)
        runs["openvino, its own default"] = folder / "openvino", vino(folder / "openvino", False, 32)
        with torch.no_grad():
            ours = torch.from_numpy(runs["bitwright"][1](ids)).double()
            p = torch.log_softmax(ours, -1)
            for engine, (path, run) in runs.items():
                run(ids[:1])
                begun = time.perf_counter()
                theirs = torch.from_numpy(run(ids).copy()).double()
                seconds = time.perf_counter() - begun
                kl = float((p.exp() * (p - torch.log_softmax(theirs, -1))).sum(-1).mean())
                row = {
                    "recipe": name, "engine": engine, "kl": kl, "largest": float((ours - theirs).abs().max()),
                    "bytes": sum(e.bytes for e in ledger(path)), "tokens_per_second": ids.size / seconds,
                }  # fmt: skip
                results.append(row)
                holds &= "fp32" not in engine or kl < 1e-7
                print(f"{name:32} {engine:26} KL {kl:10.2e}  largest {row['largest']:8.1e}  {row['bytes']:,} bytes  "
                      f"{row['tokens_per_second']:7.0f} tokens/s")  # fmt: skip
    versions = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__, "torch": torch.__version__}
    told = {"holds": holds, "results": results, "versions": versions, "machine": platform.processor() or platform.machine()}
    out = Path(__file__).parent / "results" / f"engines-{datetime.date.today()}.json"
    out.write_text(json.dumps(told, indent=1))
    print("holds" if holds else "DOES NOT HOLD")


if __name__ == "__main__":
    main()
