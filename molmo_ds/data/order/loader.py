"""The stream of batches of one rank: lanes dealt to worker processes, their states with every step."""

import hashlib
import json
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from molmo_ds.batch import Batch, Sample
from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.bad_share import too_many
from molmo_ds.data.order import losses
from molmo_ds.data.order.lanes import (
    BLOCK_CHUNKS,
    Order,
    Reference,
    generator,
    hash_of_bounds,
)
from molmo_ds.data.order.mixture import sample_rates
from molmo_ds.data.order.packing import Budget
from molmo_ds.data.order.selected import merge
from molmo_ds.data.order.sequencer import Sequence, Sequencer
from molmo_ds.data.read.shards import OPEN_ROWS, ShardSet
from molmo_ds.data.read.split import SplitSet
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.source_settings import of_samples
from molmo_ds.settings import to_dict

log = logging.getLogger(__name__)

Step = tuple[list[Batch], dict[int, dict[str, Any]]]


@dataclass
class Mixture:
    """The opened sources of a run, from which every lane draws. `stamp` must not change when a run is resumed."""

    names: list[str]
    # ShardSet, SplitSet, or anything with its len, bounds, fingerprint, record and read
    sets: list[Any]
    orders: list[Order]
    rates: list[float]
    budget: Budget
    builders: list[Any]  # SampleBuilder
    stamp: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls, config: RunConfig, builder: Any = None, sets: dict[str, Any] | None = None
    ) -> "Mixture":
        """Open all sources; `builder` (of every source) and `sets` (by name) replace them in tests."""
        data = config.data
        lanes = config.global_batch
        if sets is None:
            missing = [name for name, source in data.sources.items() if not source.path]
            if missing:
                raise ValueError(
                    f"data.sources.{missing[0]}.path is empty; give a folder, URL or glob of shards."
                )
            sets = {name: open_set(source, lanes) for name, source in data.sources.items()}
        rates = sample_rates(data, {name: len(shards) for name, shards in sets.items()})
        used = [name for name, rate in rates.items() if rate > 0]
        orders = [Order(name, sets[name].bounds, data.seed, lanes) for name in used]
        builders = [builder] * len(used) if builder else build_builders(config, used)
        mixture = cls(
            used,
            [sets[n] for n in used],
            orders,
            [rates[n] for n in used],
            Budget.of(data),
            builders,
        )
        prints = list(dict.fromkeys(one.fingerprint for one in builders))
        mixture.stamp = {
            "global_batch": lanes,
            "data.seed": data.seed,
            "the sources and their rates": _hash([used, mixture.rates]),
            "the shards' index": _hash([shards.fingerprint for shards in mixture.sets]),
            "the order of samples": hash_of_bounds([shards.bounds for shards in mixture.sets]),
            "packing": _hash([data.packing, to_dict(mixture.budget)]),
            "tokenizer, prompts or image settings": prints[0]
            if len(prints) == 1
            else _hash(prints),
        }
        return mixture

    def check(self, rank: int, ranks: int) -> None:
        """Compare the tars with their indices; each of `ranks` processes asks for its share. See ShardSet.check."""
        for shards in self.sets:
            shards.check(rank, ranks)

    def serve(self, lanes: range) -> None:
        """Let go of what other processes' lanes need; every worker process calls it first."""
        for shards in self.sets:
            # the blocks that the lanes are in, and those that their pools come from
            shards.serve(2 * BLOCK_CHUNKS * len(lanes), OPEN_ROWS // len(self.sets))
        for order in self.orders:
            order.serve(lanes)

    def size(self, source: int, sample: int, epoch: int) -> tuple[int, int]:
        """Tokens and crops of a sample, as `build` will make them; BadSample where it cannot be used."""
        record = self.sets[source].record(sample)
        tokens, crops = self.builders[source].size(record, self.draws(source, sample, epoch))
        if crops > self.budget.crops:
            raise ValueError(
                f"Sample '{record['__key__']}' of '{self.names[source]}' has {crops} crops, but "
                f"data.crops_per_sequence is {self.budget.crops}; raise it, or lower model.images.max_crops or "
                "model.video.max_frames."
            )
        return tokens, crops

    def build(self, reference: Reference) -> Sample:
        """Read, tokenise and decode a sample; BadSample where that fails on every try."""
        source, sample, epoch = reference
        record = self.sets[source].read(sample)
        return self.builders[source].build(record, self.draws(*reference))

    def lost(self, source: int) -> dict[str, int]:
        """What the sample that `build` made last of a source lost, by losses.Kind.name."""
        return getattr(self.builders[source], "lost", {})

    def describe(self, source: int, sample: int) -> str:
        """The origin of a sample, for a log."""
        shard, row = self.sets[source].locate(sample)
        return f"'{row['key']}' of {shard.path}"

    def draws(self, source: int, sample: int, epoch: int) -> Any:
        """The generator of a sample's random choices in an epoch."""
        return generator(self.orders[source].seed, self.names[source], "sample", sample, epoch)


class Sequences(IterableDataset):
    """The sequences of `lanes` for ever, in the order of the lanes; inside a worker, those of the worker's lanes.

    Worker w of W serves lanes w, w + W, ... of the rank, so that the loader, which asks the workers in turn, gets the
    lanes in order; where the lanes do not divide evenly it yields None.
    """

    def __init__(
        self, mixture: Mixture, lanes: range, states: dict[int, dict[str, Any]], packing: str
    ):
        self.mixture = mixture
        self.lanes = lanes
        self.states = states
        self.packing = packing

    def __iter__(self) -> Iterator[Sequence | Exception | None]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            owned = self.lanes[first::step]
            self.mixture.serve(owned)
            mine = [Sequencer(self.mixture, lane, self.packing) for lane in owned]
            for sequencer in mine:
                if sequencer.lane.lane in self.states:
                    sequencer.lane.load(self.states[sequencer.lane.lane])
            idle = [None] * (-(-len(self.lanes) // step) - len(mine))
            while True:
                for sequencer in mine:
                    yield sequencer.next()
                yield from idle
        # handed over, since the loader would put a traceback into its sentence
        except (ValueError, OSError) as error:
            yield (ValueError if isinstance(error, ValueError) else OSError)(str(error))


def open_set(source: SourceConfig, lanes: int) -> ShardSet | SplitSet:
    """The samples of a source."""
    shards = ShardSet(source.path, lanes, listed=False)
    return SplitSet(shards, lanes) if source.split_annotations else shards


def build_builders(config: RunConfig, names: list[str]) -> list[SampleBuilder]:
    """A builder for each source; sources that say nothing of their own share one, and all share the tokenizer."""
    made: dict[SourceConfig, SampleBuilder] = {}
    builders = []
    for name in names:
        source = config.data.sources[name]
        own = of_samples(source)
        if own not in made:
            tokenizer = next((one.tokenizer for one in made.values()), None)
            made[own] = SampleBuilder(config, tokenizer, source)
        builders.append(made[own])
    return builders


def build_stream(
    config: RunConfig,
    rank: int,
    world_size: int,
    lane_states: dict[int, dict[str, Any]] | None = None,
    start_step: int = 0,
    checker: tuple[int, int] | None = None,
) -> "Steps":
    """Yield for ever (micro_batches, lane_states after them) of one rank, from `start_step` on.

    Rank r of R owns lanes [r V / R, (r + 1) V / R), V = global_batch. `lane_states` holds at least these lanes' states,
    as an earlier stream on any number of ranks and workers gave them. Raises ValueError at once for sources that cannot
    be opened, a batch that does not divide, and states of a different stream; later for too many bad samples and shards
    that do not hold what their index says; OSError where reading keeps failing. `checker` is the number of this process
    and of all that divide the check of the tars among them; where several processes read the same lanes it is not
    (rank, world_size). What one finds only that one raises.
    """
    lanes = rank_lanes(config, rank, world_size)
    mixture = Mixture.open(config)
    mixture.check(*(checker or (rank, world_size)))
    check_states(mixture, lanes, lane_states, start_step)
    return Steps(config, sequences(config, mixture, lanes, lane_states or {}), lanes)


def rank_lanes(config: RunConfig, rank: int, world_size: int) -> range:
    """The lanes of a rank."""
    if config.global_batch % (world_size * config.micro_batch):
        raise ValueError(
            f"global_batch={config.global_batch} must be a multiple of ranks x micro_batch = "
            f"{world_size} x {config.micro_batch}."
        )
    count = config.global_batch // world_size
    return range(rank * count, (rank + 1) * count)


def check_states(
    mixture: Mixture, lanes: range, states: dict[int, dict[str, Any]] | None, start_step: int
) -> None:
    """ValueError when the states are missing or belong to another stream."""
    advice = "start a new run from the checkpoint's weights with init_from=CHECKPOINT."
    if not states and not start_step:
        return
    for lane in lanes:
        stamp = (states or {}).get(lane, {}).get("stamp")
        if stamp is None:
            raise ValueError(
                f"The checkpoint of step {start_step} has no data state of lane {lane}; {advice}"
            )
        for what, now in mixture.stamp.items():
            if stamp.get(what) != now:
                was = stamp.get(what)
                raise ValueError(
                    f"Since the checkpoint {what} changed (from {was} to {now}); undo that, or {advice}"
                )


def sequences(
    config: RunConfig, mixture: Mixture, lanes: range, states: dict[int, dict[str, Any]]
) -> Iterator[Sequence]:
    """The rank's sequences in lane order, made by worker processes ahead of time."""
    workers = min(config.data.num_workers, len(lanes))  # a lane is served by one worker
    dataset = Sequences(mixture, lanes, states, config.data.packing)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config.data.prefetch_factor if workers else None,
        collate_fn=as_it_is,
        worker_init_fn=outlive_signals,
        # the loader draws from it, and torch's global one belongs to the model
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, Exception):
            raise item
        if item is not None:
            yield item


class Steps(Iterator[Step]):
    """Sequences gathered into steps of micro-batches; logs what was skipped or lost, and stops where it is too much.

    What was lost is said at the first sample, whenever its number has doubled, and by `close`. `samples` names, for
    each micro-batch of the last step, the samples (source, number, epoch) that it was made of.
    """

    def __init__(self, config: RunConfig, stream: Iterator[Sequence], lanes: range) -> None:
        self.config = config
        self.stream = stream
        self.lanes = lanes
        self.states: dict[int, dict[str, Any]] = {}
        self.samples: list[list[tuple[str, int, int]]] = []
        self.told: dict[str, int] = {}  # by losses.Kind.name: samples, when it was last said
        self.losers: dict[str, str] = {}  # the last of them, as words

    def __next__(self) -> Step:
        """(micro_batches, lane_states after them)."""
        found = []
        for _ in self.lanes:
            sequence = next(self.stream)
            self.states[sequence.lane] = sequence.state
            self.losers |= sequence.losers
            found.append(sequence)
            _report(self.config, sequence, self.states)
        self._say_losses()
        size = self.config.micro_batch
        parts = [found[i : i + size] for i in range(0, len(found), size)]
        self.samples = [
            [name for sequence in part for name in sequence.references] for part in parts
        ]
        return [merge([sequence.row for sequence in part]) for part in parts], dict(self.states)

    def close(self, total: Callable[[list[int]], list[int]] = list) -> None:
        """Say what all readers of lanes skipped and lost in all.

        Args:
            total: sums numbers over all readers; called once, whatever they are.
        """
        counts = losses.totals(self.states)
        counts = dict(zip(counts, total(list(counts.values()))))
        if counts["bad"]:
            log.warning("In all, %d of %d samples were skipped.", counts["bad"], counts["seen"])
        for sentence in losses.sentences(counts, self.config.data.sequence_length):
            log.warning("In all, %s.", sentence)

    def _say_losses(self) -> None:
        counts = losses.totals(self.states)
        for kind in losses.KINDS:
            samples = counts[kind.samples]
            if samples >= max(1, 2 * self.told.get(kind.name, 0)):
                self.told[kind.name] = samples
                said = losses.say(kind, counts, self.config.data.sequence_length)
                # a run that is resumed knows the numbers, but not of which sample the last was
                last = self.losers.get(kind.name)
                log.warning("%s so far%s", said, f"; the last: {last}" if last else "")


def _report(config: RunConfig, sequence: Sequence, states: dict[int, dict[str, Any]]) -> None:
    if not sequence.skipped:
        return
    counts = losses.totals(states)
    bad = counts["bad"]
    seen = counts["seen"]
    for what in sequence.skipped:
        log.warning("skipped %s (%d of %d samples so far)", what, bad, seen)
    if too_many(bad, seen, config.data.max_bad_share):
        raise ValueError(
            f"{bad} of {seen} samples cannot be used, more than data.max_bad_share={config.data.max_bad_share} allows; "
            f"the last: {sequence.skipped[-1]} Mend the data (tools/inspect_shards.py lists what is bad) or raise it."
        )


def outlive_signals(worker: int) -> None:
    """Schedulers signal all processes of a job, but a rank needs its workers until it has saved, and then ends them."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # a second one ends it
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def as_it_is(item: Any) -> Any:
    """What a worker made, in place of torch's own collation."""
    return item


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
