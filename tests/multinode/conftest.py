"""A laboratory of two hosts, a run for it, and the losses of that run where nothing happens."""

from collections.abc import Iterator

import pytest
from supervised import losses_alone

from molmo_ds.testing import lab


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    with lab.Lab(tmp_path_factory.mktemp("lab"), 2) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def words(tiny_run: list[str]) -> list[str]:
    """Overrides of a run, all but `out`, that a test may stop early."""
    return [
        *tiny_run,
        "strategy=ds_configs/zero3.json",
        "max_steps=60",
        "save_interval=1",
        "timeout_seconds=20",
    ]


@pytest.fixture(scope="session")
def alone(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Step -> loss of the same run on one rank that nothing happens to."""
    return losses_alone(words, tmp_path_factory.mktemp("alone"))
