"""The first step of runs, each on one rank and on the data that its configuration names."""

from collections.abc import Mapping
from dataclasses import dataclass

from molmo_ds.config import RunConfig
from molmo_ds.data.order.loader import build_stream
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.testing import oracle
from molmo_ds.testing.ranks import run_ranks


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """What was trained on, and the loss before the update."""

    loss: float
    sequences: int
    crops: int  # of pictures, and frames of videos
    learnt_tokens: int


def first_steps(runs: Mapping[str, RunConfig], timeout: float = 200) -> dict[str, FirstStep]:
    """The first step of each run, in a process of its own."""
    [found] = run_ranks(_take, 1, runs, timeout=timeout)
    return found


def _take(world: World, runs: Mapping[str, RunConfig]) -> dict[str, FirstStep]:
    found = {}
    for name, run in runs.items():
        oracle.fresh_groups()
        engine = build_engine(run, world)
        micro_batches, _ = next(build_stream(run, 0, 1))
        found[name] = FirstStep(
            loss=engine.train_step(micro_batches)["loss"],
            sequences=sum(len(batch.input_ids) for batch in micro_batches),
            crops=sum(len(batch.images) for batch in micro_batches),
            learnt_tokens=sum(int((batch.loss_weights > 0).sum()) for batch in micro_batches),
        )
        engine.close()
    return found
