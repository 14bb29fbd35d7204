"""Kernels of a search become machine code for a GPU, which takes none: the interpreter, which runs them elsewhere in these tests,
minds neither types nor what a compiler joins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = """
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bitwright.kernels.triton import round, scan_few, scan_top

def instructions(kernel, constants, types):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {name: constants.get(name) for name in kernel.arg_names if name not in types}
    made = triton.compile(
        ASTSource(kernel, signature, constants), GPUTarget("cuda", 90, 32), {"num_warps": 4, "enable_fp_fusion": False}
    )
    assert made.asm["cubin"]
    return sorted({line.split()[0] for line in made.asm["ptx"].splitlines() if re.match(r"\\s+[a-z].*;", line)})

i32, whole = "i32", "*i32"
found = {}
tables = dict(tables="*fp32", values="*u8", scale="*fp32", bias="*fp32")
for t in (1, 64, 129):
    found[f"round {t}"] = instructions(round.round_kernel, dict(TABLES=t), tables)
sizes = dict(width=i32, parts=i32, tile=i32)
for last in (True, False):
    kinds = dict(found=whole if last else "*i64", rows="*i64")
    for given in (dict(keys=whole), dict(keys=whole, chosen=whole), dict(keys="*i64")):
        constants = dict(K=10, PART=1024, LAST=last)
        found[f"top {last} {given}"] = instructions(scan_top.top_kernel, constants, {**given, **kinds, **sizes})
codes = dict(words=whole, values="*u8", tables="*i64", scale="*fp32", bias="*fp32", keys=whole)
counts = dict(count=i32, blocks=i32, queries=i32, turns=i32)
for more in (dict(), dict(chosen=whole), dict(factor="*fp16", allowed="*u8")):
    for asm in ("", scan_few.LOOKUP):
        constants = dict(PAIRS=8, GROUP=64, STEP=4, ASM=asm)
        found[f"lookup {more} {asm[:9]}"] = instructions(scan_few.lookup_kernel, constants, {**codes, **more, **counts})
print(json.dumps(found))
"""


def test_kernels_compile_and_round_as_they_are_written(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-3000:]
    found = {name: " ".join(used) for name, used in json.loads(ran.stdout).items()}
    for name, used in found.items():
        assert "fma" not in used and "div.full" not in used and "div.approx" not in used and ".ftz" not in used, name
        assert ("div.rn.f32" in used) == name.startswith("round")
