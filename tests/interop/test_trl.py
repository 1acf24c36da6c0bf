"""TRL 1.x as it is installed: its SFTTrainer trains an export as transformers' Trainer does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import package_at

ROOT = Path(__file__).parents[2]


@pytest.mark.everything
def test_sft_trainer() -> None:
    """The test of examples/finetune/with_transformers.py, which is skipped where TRL is not installed."""
    path = f"{ROOT}:{package_at('trl', '1.16.0')}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_finetune.py", "-k", "trl"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        timeout=900,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]
