"""The package is typed: mypy reads a program that uses its public API, and sees its mistakes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from environments import clean, tool_at

HERE = Path(__file__).parent


@pytest.mark.everything
def test_the_public_api_is_typed(tmp_path: Path) -> None:
    words = ["--follow-imports=silent", "--ignore-missing-imports", "--no-error-summary"]
    environment = clean(PYTHONPATH=str(tool_at("mypy", "2.4.1")), MYPYPATH=str(HERE.parents[1]))
    environment.pop("HF_HUB_OFFLINE")
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.fspath(tmp_path), *words]
    done = subprocess.run(
        [*command, str(HERE / "typed_use.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    source = (HERE / "typed_use.py").read_text().splitlines()
    first = next(i for i, line in enumerate(source, 1) if line.startswith("def misuse")) + 2
    wrong = {int(line) for line in re.findall(r"typed_use\.py:(\d+): error", done.stdout)}
    assert wrong == set(range(first, len(source) + 1)), done.stdout + done.stderr
