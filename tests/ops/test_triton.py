"""The Triton kernels in a process of their own: TRITON_INTERPRET must be set before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (pip install molmo_ds[dev])")


def test_kernels_on_a_gpu_or_in_the_interpreter() -> None:
    cases = Path(__file__).with_name("triton_cases.py")
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = {
        **os.environ,
        **interpret,
        "OMP_NUM_THREADS": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--durations=5",
        "-p",
        "no:cacheprovider",
        str(cases),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert "skipped" not in done.stdout
