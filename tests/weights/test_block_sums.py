"""Weights that are read in part are verified: a changed byte is found, in folders of older releases too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_models import model, run_config

from molmo_ds.testing.random_weights import random_state, weights_folder
from molmo_ds.weights import checksums
from molmo_ds.weights.first_weights import begun_from

MODEL = model()
NAME = "embed.embedding"
FILE = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return weights_folder(tmp_path / "weights", MODEL, random_state(MODEL))


def as_before(folder: Path) -> None:
    """Write the checksums as releases until 2026-11-29 wrote them."""
    data = (folder / FILE).read_bytes()
    np.savez(folder / checksums.BLOCKS, **{FILE: checksums.sums(data)})


@pytest.mark.parametrize("older", [False, True])
def test_a_changed_byte_is_found_where_it_is_read(folder: Path, older: bool) -> None:
    if older:
        as_before(folder)
    config = replace(run_config(MODEL), init_from=str(folder))
    tensor = begun_from(config).folder.elements(NAME, 0, 8)
    place = begun_from(config).folder._safe[NAME]
    data = bytearray((folder / FILE).read_bytes())
    data[place.offset + 3] ^= 1
    (folder / FILE).write_bytes(data)
    changed = begun_from(config).folder
    with pytest.raises(ValueError, match=f"the checksum of {FILE} is wrong; copy the folder"):
        changed.elements(NAME, 0, 8)
    far = checksums.BLOCK // 4  # elements behind the block, float32
    assert len(changed.elements(NAME, far, far + 8)) == len(tensor) == 8


def test_a_table_of_no_block_is_refused(folder: Path) -> None:
    np.savez(folder / checksums.BLOCKS, **{f"0/{FILE}": np.zeros(1, "<u4")})
    with pytest.raises(ValueError, match="cannot be read; copy the folder again"):
        begun_from(replace(run_config(MODEL), init_from=str(folder)))


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (0, 4096),
        (8 << 30, 4096),
        (32 << 30, 4096),  # Molmo2-8B in float32: 2**23 checksums
        ((32 << 30) + 1, 8192),
        (292 << 30, 16384),  # 72B
    ],
)
def test_blocks_are_as_small_as_the_table_allows(size: int, block: int) -> None:
    assert checksums.block_of(size) == block
