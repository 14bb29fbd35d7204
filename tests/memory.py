"""Peak memory while compressing: one block in fp32, the activations of its rows, and 600 MB for everything else, however deep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROWS, LENGTH = 16, 256
RUN = """
import sys
sys.modules["triton"] = None  # here for the tests of GPU kernels; an installation for the CPU has none
import json, torch
from bitwright import recipes
from bitwright.calibrate.data import Windows
from bitwright.job import Job, compress
ids = torch.randint(0, 4096, ({rows}, {length}), generator=torch.Generator().manual_seed(0))
none = torch.zeros(len(ids), dtype=torch.long)
data = Windows(ids, ("random",), none, ("",) * len(ids), none, "random", None, 0)
recipe = recipes.best(bits=3)
plan = Job.of(sys.argv[1], recipe, data).plan
_, report = compress(sys.argv[1], recipe, data, out=sys.argv[2])
print(json.dumps([report.peak, plan.block_bytes, plan.widths, plan.peak(ids.numel())]))
"""


def test_peak_memory_is_one_block_and_its_activations(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from bitwright import zoo

    config = AutoConfig.from_pretrained(zoo.path("lm"))
    config.num_hidden_layers *= 4
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "deep")
    code = RUN.format(rows=ROWS, length=LENGTH)
    command = [sys.executable, "-c", code, str(tmp_path / "deep"), str(tmp_path / "small")]
    cold = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}  # a first run on a machine, which also compiles the loops
    done = subprocess.run(command, capture_output=True, text=True, env=cold)
    assert done.returncode == 0, done.stderr
    peak, block, widths, foretold = json.loads(done.stdout.splitlines()[-1])
    activations = 4 * ROWS * LENGTH * widths
    print(f"peak {peak / 1e6:.0f} MB of {(block + activations) / 1e6 + 600:.0f}")
    assert peak < block + activations + 600 * 10**6
    assert 0.5 < foretold / peak < 2, "the dry run's estimate is not worth printing"
