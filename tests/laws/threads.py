"""Threads: compiled loops use as many as torch does, leave torch's count alone, and no count changes a code."""

import subprocess
import sys

SCRIPT = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.rounding.chain import Chain
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase

torch.manual_seed(0)
W, x = torch.randn(33, 64), torch.randint(-8, 9, (300, 64)).float()
terms = Chain((GPTQ(), QuantEase(iters=3)))(W, Coder.fit(W, [Band(Integer(8), Layout(1, 16))]), Known({"gram": x.T @ x / 256}))
print(torch.get_num_threads(), hashlib.sha256(terms[0].tensors()["codes"].numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_is_left_alone_and_changes_no_code() -> None:
    found = {}
    for threads in (1, 2):
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(threads)], capture_output=True, text=True, check=True)
        left, digest = done.stdout.split()
        assert int(left) == threads
        found[threads] = digest
    assert found[1] == found[2]
