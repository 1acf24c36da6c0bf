"""The evaluators of a run: each measures the network in training now and then, under its own name."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from molmo_ds.config import EvaluatorConfig, RunConfig
from molmo_ds.engine import Engine
from molmo_ds.engine.launch import World
from molmo_ds.eval.in_training.loss_of_source import LossOfSource
from molmo_ds.eval.in_training.task import TaskInTraining, free_memory

log = logging.getLogger("molmo_ds")


class Measure(Protocol):
    """What an evaluator does; all ranks call it together."""

    headline: str  # the number that is said
    examples: int  # that it takes when the time suffices

    def measure(self, engine: Engine, seconds: float, beat: Callable[[], None]) -> dict[str, float]:
        """The numbers of the network as it is now, the same on every rank.

        Args:
            seconds: after which no further example is begun.
            beat: called where something has been done.
        """


class Evaluator:
    """One entry of `evaluators`, with what it measures."""

    def __init__(self, name: str, config: RunConfig, measure: Measure) -> None:
        self.name = name
        self.settings: EvaluatorConfig = config.evaluators[name]
        self.seconds = self.settings.max_seconds or config.timeout_seconds / 2
        self.measure = measure

    def due(self, step: int, last: int) -> bool:
        """Whether it runs after this step; `last` is the run's last step."""
        if step == last and self.settings.at_end:
            return True
        return self.settings.interval is not None and step % self.settings.interval == 0

    def run(self, engine: Engine, beat: Callable[[], None]) -> dict[str, float]:
        """eval/NAME/METRIC of the network as it is now; `examples` and `seconds` say what it took."""
        began = time.perf_counter()
        found = self.measure.measure(engine, self.seconds, beat)
        found["seconds"] = time.perf_counter() - began
        headline = found.get(self.measure.headline, math.nan)
        log.info("step %d %s %s %.4f", engine.step, self.name, self.measure.headline, headline)
        if not math.isfinite(headline):
            log.warning(
                "%s of the evaluator %s is %s at step %d, but the training's loss is finite; the run continues, and "
                "log.jsonl holds null.",
                self.measure.headline,
                self.name,
                headline,
                engine.step,
            )
        wanted = self.measure.examples
        if found["examples"] < wanted:
            log.warning(
                "The evaluator %s took %d of %d examples at step %d: the others cannot be used, or its %.0f seconds "
                "were over; raise evaluators.%s.max_seconds and timeout_seconds, or lower its examples.",
                self.name,
                found["examples"],
                wanted,
                engine.step,
                self.seconds,
                self.name,
            )
        return {f"eval/{self.name}/{key}": value for key, value in found.items()}


def build_evaluators(config: RunConfig, world: World) -> list[Evaluator]:
    """The evaluators of a run, in the order of its configuration.

    Raises ValueError, on every rank, for data that cannot be used, an unknown task, and weights that do not fit.
    """
    made = []
    for name, one in config.evaluators.items():
        kind = partial(TaskInTraining, free_memory(world)) if one.task else LossOfSource
        measure = world.together(partial(kind, name, config, world))
        made.append(Evaluator(name, config, measure))
    return made
