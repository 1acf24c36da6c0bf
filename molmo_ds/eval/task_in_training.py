"""The answers to a task during training: questions dealt to the ranks, scored once on rank 0.

Every rank answers with whole weights of its own, which the engine sends tensor by tensor and which are dropped
afterwards. So every strategy can, and a rank without questions has nothing to wait for but the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import nn
from tqdm import tqdm

from molmo_ds.config import RunConfig
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.engine import Engine
from molmo_ds.engine.launch import World
from molmo_ds.eval.client import Reply
from molmo_ds.eval.listing import shards_of
from molmo_ds.eval.own_client import OwnClient
from molmo_ds.eval.row import Row, unscored
from molmo_ds.eval.run import asks, by_picture
from molmo_ds.eval.score import score, scored_row
from molmo_ds.eval.sets import resolve
from molmo_ds.infer.load import DTYPES, Answerer, default_precision
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights.slices import put

BATCH = 8  # questions that a rank answers at a time: training leaves little memory


class TaskInTraining:
    """See `evaluators.Measure`."""

    def __init__(self, name: str, config: RunConfig, world: World) -> None:
        asked = config.evaluators[name]
        found = resolve(asked.task)
        if len(found) > 1:
            raise ValueError(
                f"evaluators.{name}.task={asked.task} names {len(found)} tasks; give each an evaluator."
            )
        [(self.task, self.split)] = found
        known = self.task.splits.get(self.split)
        if self.task.score is unscored or (known is not None and not known.public):
            raise ValueError(
                f"evaluators.{name}.task={asked.task} has no score here: its answers are not public."
            )
        self.name = name
        self.config = config
        self.headline = self.task.headline
        self.shards = ShardSet(str(shards_of(self.task, self.split, Path(asked.data_folder))))
        self.questions = list(self.task.rows(self.shards, self.split, asked.examples))
        self.examples = len(self.questions)
        if not self.questions:
            raise ValueError(
                f"evaluators.{name} finds no question of {asked.task} in {self.shards.path}."
            )
        for row in self.questions:
            scored_row(self.task, row, "?", "stop")
        self.precision = (
            default_precision(world.device) if config.precision == "auto" else config.precision
        )
        self.check_memory(world)
        self.builder = SampleBuilder(config)

    def check_memory(self, world: World) -> None:
        """Raise ValueError where the whole weights do not fit with what is there already."""
        with torch.device("meta"):
            numbers = sum(parameter.numel() for parameter in Molmo(self.config.model).parameters())
        needed = numbers * DTYPES[self.precision].itemsize
        on_gpu = world.device.type == "cuda"
        free = (
            torch.cuda.mem_get_info(world.device)[0]
            if on_gpu
            else psutil.virtual_memory().available
        )
        if needed > free:
            raise ValueError(
                f"evaluators.{self.name}.task needs {needed / 1e9:.1f} GB for the whole weights on every rank, and "
                f"{free / 1e9:.1f} GB are free; use evaluators with a path (a loss), which need nothing, and "
                "`molmo-ds evaluate` on the checkpoints."
            )

    def measure(self, engine: Engine, seconds: float, beat: Callable[[], None]) -> dict[str, float]:
        """The task's metrics; see `evaluators.Measure`."""
        deadline = time.perf_counter() + seconds
        world = engine.world
        answerer = Answerer(self.network(engine), self.builder, world.device)
        groups = by_picture(self.questions)
        mine = [row for group in groups[world.rank :: world.size] for row in group]
        replies = self.ask(answerer, mine, deadline, beat, silent=world.rank > 0)
        found = {reply.id: reply for part in world.gather(replies) for reply in part}
        return world.agree(lambda: self.score(found))

    def network(self, engine: Engine) -> Molmo:
        """The whole network of now, in eval mode, on this rank's device."""
        with torch.device("meta"):
            model = Molmo(self.config.model)
        silent = engine.world.rank > 0
        for name, value in tqdm(
            engine.full_state(), f"{self.name}: weights", leave=False, disable=silent
        ):
            value = value.to(engine.world.device, DTYPES[self.precision])
            put(model, name, nn.Parameter(value, requires_grad=False))
        assert not any(parameter.is_meta for parameter in model.parameters()), (
            "a parameter has no weights"
        )
        return model.eval()

    def ask(
        self,
        answerer: Answerer,
        rows: list[Row],
        deadline: float,
        beat: Callable[[], None],
        silent: bool,
    ) -> list[Reply]:
        """The replies to this rank's questions, as many as the time allows; one at least."""
        replies: list[Reply] = []
        if not rows:
            return replies
        client = OwnClient.of(answerer, min(BATCH, len(rows)))
        asked = asks(self.shards, rows, self.task.max_new_tokens)
        with tqdm(
            total=len(rows), desc=self.name, unit="question", leave=False, disable=silent
        ) as bar:
            for reply in client.replies(asked):
                replies.append(reply)
                bar.update()
                beat()
                if time.perf_counter() > deadline:
                    break
        return replies

    def score(self, replies: dict[str, Reply]) -> dict[str, float]:
        """The metrics over the questions that were answered, in the order of the shards."""
        answered = [(row, replies[row.id]) for row in self.questions if row.id in replies]
        figures = score(
            self.task,
            [scored_row(self.task, row, reply.text, reply.end) for row, reply in answered],
        )
        found = {name: figure["value"] for name, figure in figures["metrics"].items()}
        for name in ("share_unreadable", "share_without_end"):
            if figures[name] is not None:
                found[name] = figures[name]
        return {**found, "failed": float(figures["failed"]), "examples": float(len(answered))}
