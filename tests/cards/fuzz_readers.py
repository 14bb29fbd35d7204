"""Card formats: files of any bytes. Each reader under a fuzzer that is guided by the code it reaches (tests/fuzz/readers.py).

FUZZ_SECONDS is the time of all targets together, ten minutes unless told; `FUZZ_SECONDS=3600 make acceptance` is an hour's worth.
FUZZ_FOLDER keeps corpus and findings from run to run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.seeds import FILES

TESTS = Path(__file__).parents[1]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "600")) // len(FILES)


@pytest.mark.acceptance
@pytest.mark.parametrize("target", FILES)
def test_whatever_the_bytes_a_reader_reads_or_refuses(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris", reason="pip install atheris")
    if target == "onnx":
        pytest.importorskip("onnx")
    folder = Path(os.environ.get("FUZZ_FOLDER", tmp_path)) / target
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    one = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuzz.readers", target, str(folder), str(SECONDS)]
    done = subprocess.run(command, env=one, cwd=TESTS, capture_output=True, text=True, errors="replace", timeout=SECONDS + 300)
    found = sorted((folder / "found").glob("*"))
    assert not found, "\n".join(path.read_text() for path in found if path.suffix == ".txt") or found
    cases = re.search(r"Done (\d+) runs in (\d+) second", done.stderr)
    assert done.returncode == 0 and cases and int(cases[2]) >= SECONDS, done.stderr[-4000:]
    cover = re.findall(r"^#\d+\s+(?:INITED|DONE)\s+cov: (\d+)", done.stderr, re.M)
    with capsys.disabled():
        print(f"\n{target}: {int(cases[1]):,} cases in {SECONDS} s, coverage from {cover[0]} to {cover[-1]}")
