"""What is evaluated: a checkpoint, whose weights are read when the first question is asked, or a server."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.engine import launch
from molmo_ds.engine.answering.layout import refuse
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.eval import provenance
from molmo_ds.eval.clients.client import Ask, Client, Part, Reply
from molmo_ds.eval.clients.own_client import OwnClient
from molmo_ds.eval.clients.server_client import ServerClient
from molmo_ds.files import Place
from molmo_ds.infer import load
from molmo_ds.infer.replica import Replica
from molmo_ds.ops.linear import library

ALONE = launch.alone()
WAIT_SECONDS = 7 * 86_400  # of a rank that has no more questions for one that has


def join(strategy: str | None) -> World:
    """The world of ranks; a silent one is given up after minutes where all of them are one replica."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return launch.alone()
    if strategy and read_strategy(strategy).shared == size:
        return launch.start()
    return launch.start(WAIT_SECONDS)


class Subject(Protocol):
    """Something that answers, with `crops` as a user gave them: None = its own number."""

    base: Path  # folder of its results
    step: int | None  # of its training
    family: str  # of its model

    def known(self, crops: int | None) -> dict[str, Any]:
        """Its fields of a Provenance."""

    def client(self, crops: int | None) -> Client:
        """What is asked."""

    def part(self) -> Part:
        """What of the questions this rank asks."""

    def counter(self, crops: int | None) -> Callable[[int, int], int] | None:
        """The crops of a picture of a width and height, where they are known."""

    def described(self, crops: int | None) -> dict[str, Any]:
        """Its architecture, as far as it is known."""


class Checkpoint:
    """A run's folder, a checkpoint or a folder of weights; all ranks of `world` make the same calls.

    Args:
        strategy: a file of ds_configs/infer, by which ranks make up replicas; None = each rank holds the whole network.
    """

    def __init__(
        self,
        path: Place,
        base: Path | None = None,
        batch: int | None = None,
        tokenizer: Path | None = None,
        device: str | None = None,
        precision: load.Precision | None = None,
        strategy: str | None = None,
        world: World = ALONE,
    ):
        self.world = world
        self.source, self.config = world.together(
            lambda: load.look_up(path, tokenizer, world.rank, world.size)
        )
        self.folder = self.source.path
        self.device = load.usable_device(device) if strategy is None else world.device
        self.precision = precision or load.default_precision(self.device)
        if self.precision == "bf16" and self.device.type == "cpu" and world.rank == 0:
            library.warn_without_bf16()
        self.base = base or provenance.results_base(self.folder)
        self.step = provenance.step_of(self.folder)
        self.family = self.config.model.family
        self.batch = batch
        self.builders: dict[int, SampleBuilder] = {}
        self.answerer: load.Answerer | None = None
        self.replica: Replica | None = None
        self.strategy = None
        if strategy is not None:
            self.strategy = read_strategy(strategy)
            refuse(self.config.model, self.strategy)
            self.grid = Grid(self.strategy.axes(world.size), world.rank)

    def known(self, crops: int | None) -> dict[str, Any]:
        """See Subject."""
        return {
            "checkpoint": self.weights,
            "prompt": provenance.prompt_version(
                self.config.data.prompts, self.builder(crops).tokenizer.digest
            ),
            "crops": self.configured(crops).model.images.max_crops,
            "precision": self.precision,
        }

    @functools.cached_property
    def weights(self) -> str:
        """The hash of the weights, which is the same for all tasks."""
        return provenance.checkpoint_hash(self.folder)

    def client(self, crops: int | None) -> Client:
        """See Subject."""
        if self.strategy is None:
            return _Asked(self, crops)
        builder = self.builder(crops)
        if self.replica is None:
            self.replica = load.read_replica(
                self.source,
                self.config.model,
                self.strategy,
                self.world,
                self.precision,
                builder.tokenizer.eos,
            )
        return OwnClient(builder, self.replica)

    def part(self) -> Part:
        """See Subject."""
        if self.strategy is None:
            return Part(index=self.world.rank, count=self.world.size)
        grid = self.grid
        return Part(
            index=grid.place("data"),
            count=grid.size("data"),
            writes=grid.first(("stage", "tensor")),
        )

    def loaded(self, crops: int | None) -> load.Answerer:
        """The network, whose weights are read once, with that many crops."""
        if self.answerer is None:
            self.answerer = load.read(self.source, self.config, self.device, self.precision)
        return dataclasses.replace(self.answerer, builder=self.builder(crops))

    def counter(self, crops: int | None) -> Callable[[int, int], int]:
        """See Subject."""
        images = ImageProcessor(self.configured(crops).model)
        return lambda width, height: images.layout(width, height).crops

    def described(self, crops: int | None) -> dict[str, Any]:
        """See Subject."""
        return settings.to_dict(self.configured(crops).model)

    def configured(self, crops: int | None) -> RunConfig:
        """The configuration with that many crops."""
        return load.with_crops(self.config, crops)

    def builder(self, crops: int | None) -> SampleBuilder:
        """What makes the prompts with that many crops."""
        config = self.configured(crops)
        number = config.model.images.max_crops
        if number not in self.builders:
            one = next(iter(self.builders.values()), None)
            self.builders[number] = SampleBuilder(config, one and one.tokenizer)
        return self.builders[number]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A checkpoint as a client, which reads its weights at the first question."""

    checkpoint: Checkpoint
    crops: int | None

    @functools.cached_property
    def own(self) -> OwnClient:
        """The one that answers."""
        return OwnClient.of(self.checkpoint.loaded(self.crops), self.checkpoint.batch)

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See Client."""
        return self.own.replies(asks)


class Server:
    """An OpenAI-compatible server."""

    def __init__(
        self,
        url: str,
        base: Path,
        parallel: int = 16,
        model: str | None = None,
        world: World = ALONE,
        family: str | None = None,
    ):
        self.world = world
        self.base = base
        self.step = None
        self.asked = ServerClient(url, parallel, model, family=family)
        self.family = self.asked.family

    def known(self, crops: int | None) -> dict[str, Any]:
        """See Subject."""
        return {
            "checkpoint": f"{self.asked.url} {self.asked.model}",
            "prompt": provenance.prompt_version(self.asked.prompts),
            "crops": crops,
            "precision": "the server's",
        }

    def client(self, crops: int | None) -> ServerClient:
        """See Subject."""
        self.asked.max_crops = crops
        return self.asked

    def part(self) -> Part:
        """See Subject."""
        return Part(index=self.world.rank, count=self.world.size)

    def counter(self, crops: int | None) -> None:
        """See Subject."""

    def described(self, crops: int | None) -> dict[str, Any]:
        """See Subject."""
        return {"server": self.asked.url, "model": self.asked.model}
