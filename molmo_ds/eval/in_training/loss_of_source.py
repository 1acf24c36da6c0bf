"""The loss of sources during training: their first samples, each once at any number of ranks, under every strategy.

Samples are packed in their order and sequences are dealt to the ranks, so that what a sequence holds depends on the
configuration alone. allenai/molmo 793fa38, olmo/eval/loss_evaluator.py, takes the same means over one sample a row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from numpy.random import RandomState
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order import losses
from molmo_ds.data.order.loader import Mixture, as_it_is, outlive_signals
from molmo_ds.data.order.packing import Budget
from molmo_ds.data.order.selected import merge, row
from molmo_ds.engine import Engine
from molmo_ds.engine.launch import World

log = logging.getLogger("molmo_ds")
KEPT = 64  # chunks of shards that a worker keeps
Number = tuple[int, int]  # of a source, of its sample
MEANS = ("loss", "ce_loss", "z_loss", "accuracy")


class LossOfSource:
    """See `evaluators.Measure`; messages keep their order, and prompts are drawn by the sample's number."""

    headline = "loss"

    def __init__(self, name: str, config: RunConfig, world: World) -> None:
        self.name = name
        asked = config.evaluators[name]
        prompts = replace(asked.prompts or config.data.prompts, shuffle_messages=False)
        sources = asked.sources or {name: SourceConfig(path=asked.path)}
        data = replace(config.data, sources=sources, group_rates={}, prompts=prompts)
        # more crops are drawn in training only, as in the reference
        model = replace(config.model, images=replace(config.model.images, p_high_res=0.0))
        self.config = replace(config, data=data, model=model)
        self.mixture = Mixture.open(self.config)
        world.together(partial(self.mixture.check, world.rank, world.size))
        self.lost = dict.fromkeys(losses.TOLD, 0)
        sizes, unusable = self.sizes(asked.examples, world.rank > 0)
        self.examples = len(sizes)
        alone = config.model.selection is not None
        self.sequences = Sequences(self.mixture, pack(sizes, self.mixture.budget, alone))
        if not sizes:
            paths = ", ".join(source.path for source in sources.values())
            raise ValueError(f"The evaluator {name} finds no sample that can be used in {paths}.")
        if unusable:
            log.warning(
                "The evaluator %s leaves out %d samples that cannot be used.", name, unusable
            )
        for sentence in losses.sentences(self.lost, self.config.data.sequence_length):
            log.warning("The evaluator %s: %s.", name, sentence)
        self.idle = idle_row(self.mixture)

    def sizes(self, count: int, silent: bool) -> tuple[dict[Number, tuple[int, int]], int]:
        """(tokens and crops of the first `count` samples of each source, how many of these cannot be used)."""
        sizes = {}
        numbers = [
            (source, number)
            for source, shards in enumerate(self.mixture.sets)
            for number in range(min(count, len(shards)))
        ]
        for number in tqdm(numbers, f"{self.name}: sizes", leave=False, disable=silent, delay=2):
            try:
                sizes[number] = self.mixture.size(*number, 0)
            except BadSample:
                continue
            losses.add(self.lost, self.mixture.lost(number[0]))
        self.lost["seen"] = len(numbers)
        return sizes, len(numbers) - len(sizes)

    def measure(self, engine: Engine, seconds: float, beat: Callable[[], None]) -> dict[str, float]:
        """Weighted means over all learnt tokens; see `evaluators.Measure`."""
        deadline = time.perf_counter() + seconds
        world = engine.world
        rows = self.rows(engine.data_rank, engine.data_size)
        seen = []
        taken = 0
        firsts = range(0, len(self.sequences), self.config.global_batch)
        for first in tqdm(firsts, self.name, leave=False, disable=world.rank > 0):
            last = min(first + self.config.global_batch, len(self.sequences))
            mine = [next(rows) for _ in range(first + engine.data_rank, last, engine.data_size)]
            taken += sum(found.samples for found in mine)
            seen.append(
                engine.eval_loss(self.micro_batches([found.row for found in mine if found.samples]))
            )
            beat()
            if world.broadcast(time.perf_counter() > deadline):
                break
        rows.close()
        weight = max(sum(values["weight"] for values in seen), 1e-9)
        found = {
            key: sum(values[key] * values["weight"] for values in seen) / weight for key in MEANS
        }
        # ranks that share a sequence count once
        by_part = dict(world.gather((engine.data_rank, taken)))
        return {**found, "examples": float(sum(by_part.values()))}

    def micro_batches(self, rows: list[Batch]) -> list[Batch]:
        """The rows in micro-batches; a rank without any runs an idle one, since all come to every collective."""
        rows = rows or [self.idle]
        width = self.config.micro_batch
        return [merge(rows[i : i + width]) for i in range(0, len(rows), width)]

    def rows(self, rank: int, ranks: int) -> Iterator[Found]:
        """The sequences of a rank in order, read and decoded ahead."""
        size = self.config.global_batch
        mine = [i for i in range(len(self.sequences)) if i % size % ranks == rank]
        workers = min(self.config.data.num_workers, len(mine))
        found = DataLoader(
            self.sequences,
            batch_size=None,
            sampler=mine,
            num_workers=workers,
            prefetch_factor=self.config.data.prefetch_factor if workers else None,
            collate_fn=as_it_is,
            worker_init_fn=self.begin_worker,
            generator=torch.Generator(),  # the training's random numbers are not touched
        )
        for one in found:
            if isinstance(one, Exception):
                raise one
            yield one

    def begin_worker(self, worker: int) -> None:
        """Give a worker process open files of its own."""
        outlive_signals(worker)
        for shards in self.mixture.sets:
            shards.serve(KEPT)


class Found(NamedTuple):
    """A sequence of `samples` samples as a Batch with B = 1; None where none of them could be read."""

    row: Batch | None
    samples: int


class Sequences(Dataset):
    """The sequences by number."""

    def __init__(self, mixture: Mixture, packs: list[list[Number]]) -> None:
        self.mixture = mixture
        self.packs = packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Found | Exception:
        """A sequence without the samples that cannot be decoded, or an error of reading.

        The error is returned, since the loader would put a traceback into its sentence.
        """
        samples = []
        for number in self.packs[index]:
            try:
                samples.append(self.mixture.build((*number, 0)))
            except BadSample:
                continue
            except (ValueError, OSError) as error:
                return type(error)(str(error))
        return Found(row(samples, self.mixture.budget.tokens) if samples else None, len(samples))


def idle_row(mixture: Mixture) -> Batch:
    """A sequence without a picture, of which nothing is learnt."""
    words = {"__key__": "idle", "images": [], "sizes": [], "pixels": []}
    words["annotations"] = [{"style": "demo", "question": "?", "answer": "."}]
    made = row([mixture.builders[0].build(words, RandomState(0))], mixture.budget.tokens)
    return made.reweighted(torch.zeros_like(made.loss_weights))


def pack(
    sizes: dict[Number, tuple[int, int]], budget: Budget, alone: bool = False
) -> list[list[Number]]:
    """Samples by number in sequences, in their order; a sample that does not fit begins the next sequence.

    With `alone`, which is HeMolmo's, every sample does.
    """
    packs: list[list[Number]] = []
    tokens = crops = 0
    for number, (length, cost) in sizes.items():
        if alone or not packs or tokens + length > budget.tokens or crops + cost > budget.crops:
            packs.append([])
            tokens = crops = 0
        packs[-1].append(number)
        tokens += length
        crops += cost
    return packs
