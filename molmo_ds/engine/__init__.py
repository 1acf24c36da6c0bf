"""The only importer of deepspeed and accelerate: one protocol, and what builds the engine of a strategy file."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World


class Engine(Protocol):
    """The verbs of training that the loop uses, the same under every strategy."""

    step: int  # updates made so far
    world: World
    data_rank: int  # which part of the global batch this process reads ...
    data_size: int  # ... of how many
    # of a step whose loss was not finite: this rank's micro-batches that it came from
    not_finite: list[int]

    def train_step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """One update from this rank's share of the global batch; the global means of the step."""

    def eval_loss(self, micro_batches: list[Batch]) -> dict[str, float]:
        """The same means without an update."""

    def save(self, folder: str, data_state: dict[int, dict]) -> None:
        """Write a checkpoint of this step below `folder`; `data_state` is this rank's lanes'.

        With async_save it is complete some steps later; `close` waits for it. OSError if it could not be written.
        """

    def close(self) -> None:
        """Wait until the last checkpoint is complete."""

    def load(self, folder: str) -> dict[int, dict] | None:
        """Go on from the newest whole checkpoint below `folder`: all lanes' states, None if there is no checkpoint."""

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, whole, on the CPU, fp32 where a master weight exists; all ranks must iterate together."""


def build_engine(config: RunConfig, world: World | None = None) -> Engine:
    """The engine that `config.strategy` asks for, with first weights (or those of `init_from`) in it.

    Raises ValueError, in one sentence, for a strategy that cannot run.
    """
    from molmo_ds.engine import launch
    from molmo_ds.engine.strategy import read_strategy
    from molmo_ds.engine.strategy.refusals import refuse

    strategy = read_strategy(config.strategy)
    world = world or launch.start(config.timeout_seconds)
    refuse(strategy, config, world.size)
    if strategy.engine == "pipeline":
        from molmo_ds.engine.pipeline import PipelineEngine

        return PipelineEngine(config, world, strategy)
    from molmo_ds.engine.engine import DeepSpeedEngine

    return DeepSpeedEngine(config, world, strategy)
