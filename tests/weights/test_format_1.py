"""A checkpoint that a release before format 2 wrote (commit 3eabada, ZeRO-3 on two ranks) is resumed and read.

The folder and LOSSES come from that commit: two steps of SGD on synthetic batches, a save, and two steps more.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import checkpoint

FOLDER = Path(__file__).with_name("format_1")
LOSSES = [5.241004943207372, 5.185981948452536]
BATCH = 12


def config(strategy: str, ranks: int) -> RunConfig:
    micro_batch = BATCH // ranks // 2
    run = synthetic.adamw(
        strategy=f"ds_configs/{strategy}.json", global_batch=BATCH, micro_batch=micro_batch
    )
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, name="sgd"))


def resume(world: World, folder: str, strategy: str) -> list[float]:
    """Losses of the two steps after the checkpoint; its lanes came back whole."""
    run = config(strategy, world.size)
    engine = build_engine(run, world)
    lanes = engine.load(folder)
    assert engine.step == 2 and lanes == {lane: {"step": 2, "lane": lane} for lane in range(BATCH)}
    batches = (synthetic.micro_batches(run, step, world.rank, world.size) for step in (2, 3))
    return [engine.train_step(batch)["loss"] for batch in batches]


@pytest.mark.parametrize(("strategy", "ranks"), [("zero3", 2), ("zero1", 1)])
def test_it_is_resumed(strategy: str, ranks: int) -> None:
    assert run_ranks(resume, ranks, str(FOLDER), strategy)[0] == pytest.approx(LOSSES, rel=1e-6)


def test_a_flipped_byte_is_seen(tmp_path: Path) -> None:
    copy = tmp_path / "step-00000002"
    shutil.copytree(FOLDER / "step-00000002", copy)
    assert checkpoint.find(copy) == copy
    file = copy / "rank-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="none of its checkpoints is whole"):
        checkpoint.find(copy)
