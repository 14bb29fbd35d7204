"""Card formats, section 4, in the engine itself: transformers with GPTQModel loads our GPTQ directories and gives our logits.

GPTQModel lives in an environment of its own (bench/peers/README.md says how it is made); without it the test is skipped.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "gptqmodel" / "bin" / "python"
RECIPES = {
    f"{bits}-{'symmetric' if symmetric else 'zero-points'}": Recipe(Integer(2**bits, symmetric), Layout(1, 32), Nearest())
    for bits in (2, 3, 4, 8)
    for symmetric in (False, True)
}
ORDERED = {"4-ordered": Recipe(Integer(16), Layout(1, 32), GPTQ("descending", "dynamic"))}


@pytest.mark.acceptance
def test_transformers_computes_our_logits(tmp_path, capsys):
    if not PEER.is_file():
        pytest.skip("no .venv-peers/gptqmodel: bench/peers/README.md says how it is made")
    torch.manual_seed(0)
    ids = torch.randint(0, 4096, (2, 64))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    text = bitwright.calibration("zoo:lm", samples=2, length=256)
    ours = {}
    for name, recipe in (RECIPES | ORDERED).items():
        model, _ = bitwright.compress("zoo:lm", recipe, text, out=tmp_path / name, form="gptq")
        with torch.no_grad():
            ours[name] = model(ids).logits
    script = ROOT / "bench" / "peers" / "gptqmodel_logits.py"
    command = [PEER, script, "--tokens", tmp_path / "ids.safetensors", *(tmp_path / name for name in ours)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    apart = {n: float((x - load_file(tmp_path / n / "logits.safetensors")["logits"]).abs().max()) for n, x in ours.items()}
    with capsys.disabled():
        print("\n" + "\n".join(f"{name}: largest difference of a logit {gap:.1e}" for name, gap in apart.items()))
    assert max(apart.values()) < 1e-4
