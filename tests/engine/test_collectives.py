"""check_collectives names the mistake instead of hanging, and changes nothing where there is none."""

import time

import pytest
import torch

from molmo_ds.engine import build_engine
from molmo_ds.engine.checks import collectives
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks


def mistakes(world: World) -> dict[str, tuple[str, float]]:
    """What each rank is told, and after how many seconds."""
    import deepspeed

    config = synthetic.config(
        strategy="ds_configs/zero3.json", check_collectives=True, timeout_seconds=3
    )
    engine = build_engine(config, world)
    out = {
        "loss": engine.train_step(synthetic.micro_batches(config, 1, world.rank, world.size))[
            "loss"
        ]
    }

    def size() -> None:
        deepspeed.comm.all_reduce(torch.zeros(3 + world.rank))

    def kind() -> None:
        call = deepspeed.comm.all_reduce if world.rank else deepspeed.comm.broadcast
        call(torch.zeros(5), 0) if world.rank == 0 else call(torch.zeros(5))

    def other_verb() -> None:
        batches = synthetic.micro_batches(config, 2, world.rank, world.size)
        (engine.eval_loss if world.rank else engine.train_step)(batches)

    for mistake in (size, kind, other_verb):
        began = time.monotonic()
        with pytest.raises(collectives.MismatchError) as caught:
            mistake()
        out[mistake.__name__] = str(caught.value), time.monotonic() - began
        if mistake is not other_verb:
            world.barrier()
    return out


def test_a_mismatch_is_a_sentence_on_both_ranks() -> None:
    first, second = run_ranks(mistakes, 2, timeout=90)
    plain = run_ranks(plain_loss, 2)[0]
    assert first["loss"] == second["loss"] == plain
    assert (
        "calls all_reduce of 3 x float32" in first["size"][0]
        and "rank 1 calls all_reduce of 4" in first["size"][0]
    )
    assert "Rank 1 calls all_reduce of 4" in second["size"][0]
    assert (
        "Rank 0 calls broadcast of 5" in first["kind"][0]
        and "rank 1 calls all_reduce of 5" in first["kind"][0]
    )
    assert "in step 2" in first["other_verb"][0]
    assert all(
        run[name][1] < 20 for run in (first, second) for name in ("size", "kind", "other_verb")
    )


def mistake_of_a_pipeline(world: World) -> str:
    """What each rank is told after a step."""
    import deepspeed

    config = synthetic.config(strategy="ds_configs/pipe_dualpipev.json", check_collectives=True)
    engine = build_engine(config, world)
    engine.train_step(synthetic.micro_batches(config, 1, 0, 1))
    with pytest.raises(collectives.MismatchError) as caught:
        deepspeed.comm.all_reduce(torch.zeros(3 + world.rank))
    return str(caught.value)


def test_a_pipeline_names_its_step() -> None:
    first, _ = run_ranks(mistake_of_a_pipeline, 2)
    sides = "all_reduce of 3 x float32 in step 1", "all_reduce of 4 x float32 in step 1"
    assert all(side in first for side in sides)


def plain_loss(world: World) -> float:
    config = synthetic.config(strategy="ds_configs/zero3.json")
    engine = build_engine(config, world)
    return engine.train_step(synthetic.micro_batches(config, 1, world.rank, world.size))["loss"]
