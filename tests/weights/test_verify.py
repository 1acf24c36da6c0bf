"""A checkpoint that is read whole because a person asks: any changed byte of its numbers is found."""

import shutil
from pathlib import Path

import pytest
from stored_models import model, run_config, tensor_parts, write_checkpoint

from molmo_ds.show.checkpoints import checkpoints
from molmo_ds.testing.random_weights import random_state
from molmo_ds.weights import checkpoint

MODEL = model()
STEP = "checkpoints/step-00000003"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with a checkpoint whose pieces are cut as tensor parallelism cuts them."""
    run = tmp_path_factory.mktemp("verify") / "run"
    run.mkdir()
    write_checkpoint(run / "checkpoints", run_config(MODEL), random_state(MODEL), tensor_parts)
    return run


def numbers_begin(file: Path) -> int:
    """The first byte behind the header of a safetensors file."""
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def test_a_whole_checkpoint_is_whole(whole: Path) -> None:
    assert checkpoint.verify(whole / STEP) is None


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", [0, 0.37, 0.81, 1])
def test_a_changed_byte_is_found(whole: Path, tmp_path: Path, rank: int, share: float) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    file = run / STEP / f"rank-{rank:05d}.safetensors"
    data = bytearray(file.read_bytes())
    begin = numbers_begin(file)
    data[begin + int(share * (len(data) - 1 - begin))] ^= 1
    file.write_bytes(data)
    assert checkpoint.what_is_wrong(run / STEP) is None, "by its size it is whole"
    assert checkpoint.verify(run / STEP) == f"the checksum of {file.name} is wrong"
    [by_size], [by_bytes] = checkpoints(run), checkpoints(run, verify=True)
    assert by_size.wrong is None and by_bytes.wrong == f"the checksum of {file.name} is wrong"
