"""A lock that a killed compilation left is deleted before anything waits for it; one that is in use stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from molmo_ds.engine import launch
from molmo_ds.engine.launching.op_locks import drop_stale_locks
from molmo_ds.testing.ranks import run_ranks

COMPILE = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("compiling", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of an op's lock in an extension folder of its own."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    place = tmp_path / "py311_cpu" / "async_io" / "lock"
    place.parent.mkdir(parents=True)
    return place


def start(lock: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILE, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "compiling\n"
    return process


def begin(world: launch.World) -> bool:
    return Path(os.environ["TORCH_EXTENSIONS_DIR"], "py311_cpu/async_io/lock").exists()


def test_only_a_killed_compilation_loses_its_lock(lock: Path) -> None:
    process = start(lock)
    try:
        assert drop_stale_locks() == []
        assert lock.exists()
    finally:
        process.kill()
        process.wait()
    assert lock.exists()
    assert drop_stale_locks() == [lock]
    assert not lock.exists()


def test_ranks_start_without_it(lock: Path) -> None:
    process = start(lock)
    process.kill()
    process.wait()
    assert run_ranks(begin, 2) == [False, False]
