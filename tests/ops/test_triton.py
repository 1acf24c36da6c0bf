"""The Triton kernels on the CPU, in a process of their own: TRITON_INTERPRET must be set before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (pip install molmo_ds[dev])")


def test_kernels_in_the_interpreter() -> None:
    cases = Path(__file__).with_name("interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert "skipped" not in done.stdout
