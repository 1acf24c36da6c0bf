"""A small tokenizer for the hub tests."""

from pathlib import Path

import pytest
import torch

from molmo_ds.data.tokens import train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 300 words without image tokens, as a language model brings it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(
        ["Describe this picture. User: what is it? Assistant: a red boat, two blue birds."] * 3,
        300,
        folder,
    )
    return folder
