"""Items to shards in worker processes: what cannot be used is skipped and counted, and refused above a limit."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from molmo_ds.data.bad_share import too_many
from molmo_ds.data.convert.items import Fault
from molmo_ds.data.convert.origins import Item
from molmo_ds.data.convert.pictures import printable
from molmo_ds.data.convert.rows import Mapping, Notes, Sample, to_sample
from molmo_ds.data.convert.staging import Staging
from molmo_ds.data.decode import BadSample
from molmo_ds.data.read.writer import write_shard

MOST_BAD = 1000  # rows, before half of all is too many to continue


@dataclass
class Outcome:
    """The result for some rows: samples written, sentences about the others, and what is worth a word."""

    samples: int = 0
    faults: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    more: int = 0  # rows that faults stand for beyond one each

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return len(self.faults) + self.more

    @property
    def seen(self) -> int:
        """Rows looked at, and those that a damage hides."""
        return self.samples + self.bad

    def merge(self, other: "Outcome") -> None:
        """Add what became of other rows."""
        self.samples += other.samples
        self.faults += other.faults
        self.notes.merge(other.notes)
        self.more += other.more


@dataclass(frozen=True)
class Plan:
    """Settings of the way from items to shards."""

    out: Path
    name: str
    per_shard: int
    workers: int
    max_bad_share: float


def convert(
    items: Iterable[Item | Fault], mapping: Mapping, plan: Plan, outcome: Outcome
) -> Iterator[int]:
    """Make shards of all items and publish them at the end; yields how many rows are done, and adds to `outcome`.

    The shards do not depend on the number of workers. Raises ValueError, and leaves nothing, where more rows
    than `max_bad_share` allows cannot be used, where no sample is left, and for what `Staging` refuses.
    """
    staging = Staging(plan.out, plan.name)
    try:
        for part in _in_processes(_batches(items, plan.per_shard, outcome), mapping, plan, staging):
            outcome.merge(part)
            if outcome.bad > MOST_BAD and outcome.bad > outcome.seen / 2:
                break
            yield part.seen
        check(outcome, plan)
        _check_columns(mapping, outcome.notes)
        if refusal := outcome.notes.bare.refusal():
            raise ValueError(f"{refusal} Nothing was written.")
        staging.publish()
    finally:
        staging.close()


def check(outcome: Outcome, plan: Plan) -> None:
    """ValueError where too many rows cannot be used, or all."""
    bad = outcome.bad
    if too_many(bad, outcome.seen, plan.max_bad_share) or (
        bad > MOST_BAD and bad > outcome.seen / 2
    ):
        raise ValueError(
            f"{bad} of {outcome.seen} rows cannot be used, more than --max-bad-share {plan.max_bad_share} (of 10,000"
            f" rows at least) allows; nothing was written. The first: {outcome.faults[0]}"
        )
    if not outcome.samples:
        why = f": none of {bad} rows can be used. The first: {outcome.faults[0]}" if bad else "."
        raise ValueError(f"There is no sample to write into {plan.out}{why}")


def _check_columns(mapping: Mapping, notes: Notes) -> None:
    for option, names in (
        ("--image", mapping.images),
        ("--map", [column for _, column in mapping.columns]),
    ):
        never = [name for name in names if name not in notes.columns | notes.used]
        if never:
            raise ValueError(
                f"{option} names the column '{never[0]}', which no row has; nothing was written."
            )


def _batches(
    items: Iterable[Item | Fault], per_shard: int, outcome: Outcome
) -> Iterator[list[Item]]:
    """The items of a shard at a time; faults, and keys that come twice, go to the outcome."""
    seen: set[str] = set()
    sound = _sound(items, seen, outcome)
    while batch := list(islice(sound, per_shard)):
        yield batch


def _sound(items: Iterable[Item | Fault], seen: set[str], outcome: Outcome) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Fault):
            outcome.faults.append(str(item))
            outcome.more += item.rows - 1
            continue
        key = final_key(item)
        if key in seen:
            outcome.faults.append(
                f"{printable(item.where)}: Key {printable(repr(key))} comes twice; give every sample a key of its own."
            )
            continue
        seen.add(key)
        yield item


def final_key(item: Item) -> str:
    """The key in the shards, where a dot would end it."""
    return item.key.replace(".", "_")


def _in_processes(
    batches: Iterable[list[Item]], mapping: Mapping, plan: Plan, staging: Staging
) -> Iterator[Outcome]:
    if plan.workers == 1:
        for number, batch in enumerate(batches):
            yield make_shard(staging.tar(number), batch, mapping)
        return
    pending: deque[Future[Outcome]] = deque()
    with ProcessPoolExecutor(plan.workers, mp_context=get_context("spawn")) as pool:
        try:
            for number, batch in enumerate(batches):
                pending.append(pool.submit(make_shard, staging.tar(number), batch, mapping))
                while len(pending) > 2 * plan.workers:  # bounds what waits in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                "A worker process was killed, perhaps for want of memory; lower --workers or --samples-per-shard."
            ) from None
        finally:
            for future in pending:
                future.cancel()


def make_shard(path: Path, batch: list[Item], mapping: Mapping) -> Outcome:
    """Write what can be used of a batch as one indexed tar; none where nothing can be used."""
    outcome = Outcome()
    samples = _usable(batch, mapping, outcome)
    first = next(samples, None)
    if first is not None:
        outcome.samples = write_shard(path, _chained(first, samples), len(batch) + 1, 1 << 62)
    return outcome


def _chained(first: Sample, others: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from others


def _usable(batch: list[Item], mapping: Mapping, outcome: Outcome) -> Iterator[Sample]:
    for item in batch:
        notes = Notes()
        try:
            row, pictures = item.read(mapping, notes)
            made = to_sample(final_key(item), row, pictures, mapping, notes)
        except BadSample as error:
            outcome.faults.append(f"{printable(item.where)}: {error}")
            continue
        outcome.notes.merge(notes)
        yield made


def summary(outcome: Outcome, passed: dict[str, int]) -> list[str]:
    """Lines for the end, after the number of samples: nothing is left out in silence."""
    notes = outcome.notes
    unused = sorted(notes.filled - notes.used)
    out = [f"{outcome.bad} of {outcome.seen} rows skipped"] if outcome.faults else []
    out += [f"passed over: {count} {what}" for what, count in sorted(passed.items()) if count]
    out += [f"{count} {what}" for what, count in sorted(notes.counts.items()) if count]
    if notes.bare.annotations:
        out.append(
            f"{notes.bare.annotations} annotations whose points name no unit, taken as pixels"
        )
    out += notes.review.sentences()
    return out + ([f"columns not used: {', '.join(unused)}"] if unused else [])
