"""Whole layers compile to cubins for a GPU that is not there: once and unbroken, whatever a batch shows."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.tables import ROOT

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which("g++") is None or torch.version.cuda is not None,
        reason="no g++, or a build of torch that has CUDA: nothing is compiled for a GPU",
    ),
]


@pytest.mark.parametrize("arch", [80, 90] if EVERYTHING else [90])
def test_layers_compile_once(arch: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed (pip install molmo_ds[dev])")
    tool = [str(ROOT / "tools/bench/compiled_cubins.py"), str(arch), "--small"]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "molmo_ds.testing.twin",
            *tool,
            *([] if EVERYTHING else ["--brief"]),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:2] == "| "]
    rows = [row for row in rows if row[1].isdigit()]
    training, *others = rows
    _, batches, first, later, breaks, kernels, _ = training
    # one graph for the ViT's blocks and one for the decoder's layers
    assert (first, later, breaks) == ("2", "0", "0")
    assert int(batches) >= 4 and int(kernels) > 40
    assert all(row[4] == "0" for row in others), "a graph breaks"
    if EVERYTHING:
        assert {row[0]: row[2:4] for row in others}["evaluation"] == ["2", "0"]
