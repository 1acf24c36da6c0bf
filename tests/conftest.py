"""Puts this folder on the path (ranks, synthetic, run_files) and makes what several tests share, once."""

from pathlib import Path

import pytest

from molmo_ds.testing import run_files


def pytest_addoption(parser: pytest.Parser) -> None:
    """--examples N: how many examples the tests over random draws take; few in the suite, hundreds by hand."""
    parser.addoption("--examples", type=int, default=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs DeepSpeed's NVMe op comes last: run.sh compiles it meanwhile, which takes minutes."""
    items.sort(key=lambda item: item.path.name == "test_nvme.py")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run of a micro model over tiny shards; `out=...` is missing."""
    folder: Path = tmp_path_factory.mktemp("tiny_run")
    return run_files.make(folder)
