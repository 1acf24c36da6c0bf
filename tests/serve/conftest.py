"""A front with a parrot behind it, for all tests of serve."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from molmo_ds.data.tokens import Tokenizer
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server, weights_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a micro model that knows 512 positions."""
    torch.set_num_threads(1)
    return weights_folder(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    """The words of that model."""
    return Tokenizer(folder / "tokenizer", 288)


@pytest.fixture(scope="session")
def parrot(tokenizer: Tokenizer) -> Parrot:
    """The engine behind `server`; a step takes 2 ms."""
    return Parrot(tokenizer.eos, 0.002)


@pytest.fixture(scope="session")
def server(folder: Path, parrot: Parrot) -> Iterator[Server]:
    """A front that takes 8 requests at a time."""
    server = Server(folder, queue=8, seconds=30.0)
    with server.front_in_a_thread(), server.engine_in_a_thread(parrot):
        yield server
