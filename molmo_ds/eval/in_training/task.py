"""The answers to a task during training: questions dealt to the ranks, scored once on rank 0.

The ranks make up replicas of their own, each of as few ranks as its weights need, which the engine fills tensor by
tensor and which are dropped afterwards. So every strategy can, and a rank without questions has nothing to wait for but
the end.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from molmo_ds.config import RunConfig
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.engine import Engine
from molmo_ds.engine.answering.in_training import Weights, fitting
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import Limits, Strategy
from molmo_ds.eval.clients.client import Ask, Reply
from molmo_ds.eval.clients.own_client import OwnClient
from molmo_ds.eval.listing import shards_of
from molmo_ds.eval.row import Row, unscored
from molmo_ds.eval.run import asks, by_picture
from molmo_ds.eval.score import check_truths, score, scored_row
from molmo_ds.eval.sets import resolve
from molmo_ds.infer.load import DTYPES, default_precision
from molmo_ds.infer.replica import Replica

log = logging.getLogger("molmo_ds")
BATCH = 8  # questions that a rank answers at a time: training leaves little memory


class TaskInTraining:
    """See `evaluators.Measure`."""

    def __init__(self, free: int, name: str, config: RunConfig, world: World) -> None:
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
        doubt = check_truths(self.task, self.questions)
        if doubt:
            log.warning("evaluators.%s: %s", name, doubt)
        self.precision = (
            default_precision(world.device) if config.precision == "auto" else config.precision
        )
        self.world = world
        self.builder = SampleBuilder(config)
        known = config.model.text.max_position_embeddings
        self.layout = self.laid_out(free, Limits(slots=BATCH, slot_tokens=known))
        self.grid = Grid(self.layout.axes(world.size), world.rank)

    def laid_out(self, free: int, limits: Limits) -> Strategy:
        """How the ranks make up replicas beside what is there already; ValueError where they cannot."""
        itemsize = DTYPES[self.precision].itemsize
        try:
            return fitting(self.config.model, self.world.size, free, limits, itemsize)
        except ValueError as error:
            raise ValueError(
                f"evaluators.{self.name}.task {error}; use more ranks, evaluators with a path (a loss), which need"
                " nothing, or `molmo-ds evaluate` on the checkpoints."
            ) from None

    def measure(self, engine: Engine, seconds: float, beat: Callable[[], None]) -> dict[str, float]:
        """The task's metrics; see `evaluators.Measure`."""
        deadline = time.perf_counter() + seconds
        world = engine.world
        replica = self.replica(engine)
        groups = by_picture(self.questions)
        mine = [row for group in groups[replica.index :: replica.count] for row in group]
        replies = self.ask(replica, mine, deadline, beat)
        writes = self.grid.first(("stage", "tensor"))
        found = {
            reply.id: reply for part in world.gather(replies if writes else []) for reply in part
        }
        return world.agree(lambda: self.score(found))

    def replica(self, engine: Engine) -> Replica:
        """This rank's part of a replica of the network of now."""
        return Replica.over_ranks(
            self.config.model,
            self.layout,
            engine.world,
            Weights(engine, self.config.model),
            self.builder.tokenizer.eos,
            DTYPES[self.precision],
            self.grid,
        )

    def ask(
        self, replica: Replica, rows: list[Row], deadline: float, beat: Callable[[], None]
    ) -> list[Reply]:
        """The replies to this replica's questions, as many as the time allows; one at least."""
        client = OwnClient(self.builder, replica)
        asked = asks(self.shards, rows, self.task.new_tokens(self.config.model.family))
        replies: list[Reply] = []
        silent = self.world.rank > 0
        with tqdm(
            total=len(rows), desc=self.name, unit="question", leave=False, disable=silent
        ) as bar:
            for reply in client.replies(in_time(asked, deadline, replica)):
                replies.append(reply)
                bar.update()
                beat()
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


def in_time(asked: Iterable[Ask], deadline: float, replica: Replica) -> Iterator[Ask]:
    """The questions up to the deadline, one at least; the ranks of a replica stop at the same one."""
    for number, ask in enumerate(asked):
        if number and replica.share.any(time.perf_counter() > deadline):
            return
        yield ask


def free_memory(world: World) -> int:
    """Bytes that every rank can have at least; on a CPU the ranks of a host share what is free there."""
    if world.device.type == "cuda":
        return min(world.gather(torch.cuda.mem_get_info(world.device)[0]))
    hosts = world.gather((socket.gethostname(), psutil.virtual_memory().available))
    names = [name for name, _ in hosts]
    return min(available // names.count(name) for name, available in hosts)
