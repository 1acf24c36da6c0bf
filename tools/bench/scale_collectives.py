"""Counts the collectives of a step: the real engine and DeepSpeed on made-up ranks, fake tensors at real size.

    python tools/bench/scale_collectives.py [--micro | --real | --small | --pipes] [--only STRATEGY ...] [--ranks N ...]
        [--model PRESET ...] [--keep FILE] [--write]

Each case is a fork of this process. The third step is counted, which must repeat the second, call by call. Of more than
eight ranks the same is asked of the second step of the last one, and at real size of one of the first half; the order
of the calls must not depend on the number of ranks, and what is sent is compared with `by_theory`. --micro counts the
micro model of the tests, and --real the same on two and four real ranks: each must make the calls of its made-up one,
in their order (there the fourth step is counted, since in the second DeepSpeed compares its traces). --write puts the
table into docs/evidence/many-ranks.md. With --keep a call resumes where an earlier one with that file was stopped.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch

from molmo_ds import presets
from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.engine import DeepSpeedEngine
from molmo_ds.engine.launch import World
from molmo_ds.engine.parallel.sequence import part
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.testing import collectives, oracle, synthetic, tables
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.scale.ranks import Network
from molmo_ds.testing.twin.counts import fake_batch

TOKENS = 2304  # of a sequence at real size
CROPS = 13
STEPS = 3
MAX_LIVE = 10**9  # DeepSpeed's stage3_max_live_parameters
OF_PIPES = ("send", "recv", "all_gather", "all_reduce", "broadcast", "all_to_all")
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "reduce", "broadcast", "all_to_all")
Tally = dict[str, list[int]]  # kind -> calls, bytes
Calls = list[list]  # kind, bytes and members of each, in their order


@dataclass(frozen=True)
class Case:
    """A strategy with a model on so many ranks; `model` is a preset, or the micro model with a family's decoder."""

    strategy: str
    model: str
    ranks: int
    micro_steps: int = 1
    rank: int = 0  # whose calls are counted

    @property
    def micro(self) -> bool:
        """Whether it is the micro model."""
        return self.model in ("qwen2", "olmoe")

    @property
    def spread(self) -> bool:
        """Whether experts are, whose messages are as long as their tokens are many; fake ones are spread evenly."""
        return self.strategy.endswith("_ep")

    @property
    def uneven(self) -> bool:
        """Whether what is sent depends on the batch."""
        return self.spread or self.strategy.startswith("pipe")

    @property
    def places(self) -> list["Case"]:
        """The same of the ranks that are counted: of few ones the first, which --real compares with all."""
        middle = () if self.micro else (self.ranks // 3,)
        others = (*middle, self.ranks - 1) if self.ranks > 8 else ()
        return [replace(self, rank=rank) for rank in (0, *others)]

    @property
    def name(self) -> str:
        """For the file of what is kept."""
        return f"{self.strategy} {self.model} {self.ranks} {self.micro_steps} rank {self.rank}"

    def config(self) -> RunConfig:
        """The run: one sequence a micro-step; at real size AdamW, bf16 and recomputation, else SGD and fp32."""
        path = str(tables.ROOT / f"ds_configs/{self.strategy}.json")
        replicas = read_strategy(path).data_parallel_size(self.ranks)
        sizes = {"strategy": path, "global_batch": replicas * self.micro_steps, "micro_batch": 1}
        if self.micro:
            return synthetic.config(model=oracle.family(self.model), **sizes)
        more = {"precision": "bf16", "activation_checkpointing": "full"}
        return replace(RunConfig(), model=presets.get(self.model), **sizes, **more)


OF_SEVEN = ("zero0", "zero1", "zero2", "zero3", "zero3_hpz", "zero3_sp", "zero3_tp")
OF_EXPERTS = ("zero2_ep", "zero3_ep", "zero3_sp_ep")
SMALL = tuple(Case(name, "qwen2", 1024) for name in ("zero1", "zero3"))
MICRO = (
    *(Case(f"zero{stage}", "qwen2", 2, steps) for stage in range(4) for steps in (1, 4)),
    *(Case(name, "qwen2", ranks, 2) for ranks in (4, 64, 1024) for name in OF_SEVEN),
    *(Case(name, "olmoe", ranks, 2) for ranks in (4, 64, 1024) for name in OF_EXPERTS),
)
# counted on real ranks alone: a stage is told what shapes come, which fake ranks cannot be
PIPES = (
    Case("pipe_zero1", "qwen2", 2, 4),
    Case("pipe_zero1", "qwen2", 4, 2),
    Case("pipe_dualpipev", "qwen2", 2, 4),
    Case("pipe_zero1_ep", "olmoe", 4, 2),
)
SIZES = (
    *(Case(name, "molmo_7b_d", ranks) for ranks in (8, 64) for name in OF_SEVEN),
    Case("zero3", "molmo_7b_d", 8, micro_steps=2),
    *(Case(name, "molmoe_1b", 256) for name in ("zero3", *OF_EXPERTS)),
    Case("zero3", "molmo2_8b", 512),
    *(Case("zero3", "molmo_72b", ranks) for ranks in (64, 1024)),
)


def count(case: Case) -> Calls:
    """The calls of the third step of made-up rank 0, which must be those of the second; of others of the second."""
    world = collectives.pretend(case.ranks, case.rank)
    config = case.config()
    given = shares(case, config)
    # shared already, where there were numbers
    whole = mock.patch.object(DeepSpeedEngine, "share", lambda _, batch: batch)
    with collectives.without_memory(), whole:
        engine = build_engine(config, world)
        steps = []
        for _ in range(STEPS if case.rank == 0 else STEPS - 1):
            parts = [without_numbers(batch) for batch in given]
            with collectives.Recorder() as recorder:
                engine.train_step(parts)
            steps.append(recorder.calls)
    return checked(steps[1:])


def shares(case: Case, config: RunConfig) -> list[Batch]:
    """A rank's micro-batches, with numbers, by which the tokens and pictures of a sequence are dealt out."""
    strategy = read_strategy(config.strategy)
    if case.micro:
        replicas = strategy.data_parallel_size(case.ranks)
        given = synthetic.micro_batches(config, 1, 0, replicas)
    else:
        batch = fake_batch(config.model, 1, TOKENS, CROPS, TOKENS // 2)
        batch.windows.copy_(torch.arange(batch.windows.numel()).view_as(batch.windows))
        batch.image_positions.copy_(torch.arange(len(batch.image_positions)))
        batch.loss_weights.zero_()[:, : TOKENS // 2] = 1
        given = [batch] * case.micro_steps
    if strategy.sequence > 1:
        given = [part(batch, case.rank % strategy.sequence, strategy.sequence) for batch in given]
    return given


def without_numbers(batch: Batch) -> Batch:
    """A batch of the same sizes."""
    return type(batch)(**{name: torch.empty_like(x) for name, x in vars(batch).items()})


def checked(steps: list[list[collectives.Call]], uneven: bool = False) -> Calls:
    """The calls of the last step. AssertionError if the one before made others, or any carried objects.

    Args:
        uneven: sizes may differ.
    """
    before, last = (
        [replace(call, elements=0) if uneven else call for call in calls]
        for calls in (steps[-2:][0], steps[-1])
    )
    assert last == before, "the last step differs from the one before"
    assert not any(call.of_objects for call in steps[-1]), "objects are exchanged in a step"
    return [[call.kind, call.bytes, call.members] for call in steps[-1] if call.members > 1]


def tally(calls: Calls) -> Tally:
    """How many there are of each kind."""
    found: Tally = {}
    for kind, size, _ in calls:
        count, sizes = found.get(kind, (0, 0))
        found[kind] = [count + 1, sizes + size]
    return found


def really(world: World, case: Case) -> Calls:
    """The same of a real rank."""
    config = case.config()
    engine = build_engine(config, world)
    steps = []
    for step in range(1, STEPS + 2):
        parts = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
        with collectives.Recorder() as recorder:
            engine.train_step(parts)
        steps.append(recorder.calls)
    return checked(steps, case.uneven)


def _send(case: Case, end: Connection) -> None:
    end.send(json.dumps(count(case)))
    end.close()
    os._exit(0)  # DeepSpeed would wait for ranks that are not there


def counted(case: Case) -> Calls:
    """`count` in a process of its own. AssertionError if it died."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_send, args=(case, there))
    child.start()
    there.close()
    try:
        return json.loads(here.recv())
    except EOFError:
        raise AssertionError(f"{case} was not counted; its error is above") from None
    finally:
        child.join()


def of_pipes(cases: list[Case]) -> list[str]:
    """The lines of the table of pipelines: ranks of a stage must make the same calls."""
    names = ["strategy", "ranks", "A", "stage", *(kind.replace("_", "-") for kind in OF_PIPES)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for case in cases:
        ranks = [tally(calls) for calls in run_ranks(really, case.ranks, case, timeout=900)]
        counts = [[str(found.get(kind, (0,))[0]) for kind in OF_PIPES] for found in ranks]
        half = case.ranks // 2  # the files have two stages
        for stage, of_stage in enumerate((counts[:half], counts[half:])):
            assert all(one == of_stage[0] for one in of_stage), f"{case}: ranks of a stage differ"
            cells = [case.strategy, str(case.ranks), str(case.micro_steps), str(stage + 1)]
            lines.append(f"| {' | '.join(cells + of_stage[0])} |")
    return lines


def row(case: Case, found: Tally) -> str:
    """A line of a table."""
    cells = [case.strategy, f"{case.ranks:,}", str(case.micro_steps)]
    cells += [] if case.micro else [case.model]
    for kind in KINDS:
        calls, size = found.get(kind, (0, 0))
        cells.append(
            f"{calls:,}" if case.micro or not calls else f"{calls:,} ({size / 1e9:.3g} GB)"
        )
    return f"| {' | '.join(cells)} |"


def head(micro: bool) -> list[str]:
    """The lines above the rows of a table."""
    names = ["strategy", "ranks", "A", *([] if micro else ["model"])]
    names += [kind.replace("_", "-") for kind in KINDS]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def measure(cases: list[Case]) -> None:
    """Compare made-up ranks with real ones; AssertionError where they differ."""
    for case in cases:
        for rank, found in enumerate(run_ranks(really, case.ranks, case, timeout=900)):
            made_up = counted(replace(case, rank=rank))
            if case.spread:  # what is sent depends on the tokens
                found, made_up = without_bytes(found), without_bytes(made_up)
            assert found == made_up, f"{case}: rank {rank} made {found}, a made-up one {made_up}"
        print(f"{case.name}: as counted, call by call", flush=True)


def without_bytes(calls: Calls) -> Calls:
    """The same, but how long all-to-alls are."""
    return [[kind, size * (kind != "all_to_all"), members] for kind, size, members in calls]


def of_all_places(case: Case, kept: tables.Kept) -> Calls:
    """The calls of a rank, counted on several, which must make the same. AssertionError where they do not."""
    for place in case.places:
        if place.name not in kept.found:
            began, cpu = time.monotonic(), children_time()
            kept.add(place.name, counted(place))
            took, used = time.monotonic() - began, children_time() - cpu
            print(f"{place.name}: {took:.0f} s, {used:.0f} of a core", flush=True)
        calls = kept.found[place.name]
        assert calls == kept.found[case.name], f"{place.name} makes other calls than rank 0"
    return calls


def children_time() -> float:
    """CPU-seconds of the forks so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def by_theory(case: Case) -> dict[str, tuple[float, float]]:
    """kind -> least and most bytes of a step; of spread experts what a rank has.

    Gradients of all weights that learn go in fp32, once a micro-step, or under ZeRO-0 and 1 once a step. Under ZeRO-3
    each weight is filled up to a length that the ranks divide, under ZeRO-1 and 2 each of the optimizer's groups, seven
    at most, to one that twice as many divide. The run's own all-reduces come on top. ZeRO-3 gathers what learns forth
    and back and the frozen embedding forth, but not what is still there, MAX_LIVE numbers and a layer at most; in 72B
    a few weights are gathered again.
    """
    config = case.config()
    network = Network.of(config)
    strategy = read_strategy(config.strategy)
    sizes = {}
    for name, shape in network.shapes.items():
        parts = strategy.experts if ".experts." in name else 1
        unit = case.ranks // parts if strategy.stage == 3 else 1
        sizes[name] = 4 * unit * math.ceil(math.prod(shape) / parts / unit)
    learnt = sum(size for name, size in sizes.items() if name not in network.frozen)
    if strategy.stage == 3:
        layer = sum(size for name, size in sizes.items() if name.startswith("layers.0."))
        gathered = 2 * learnt + sizes["embed.embedding"]
        least, most = gathered - 4 * MAX_LIVE - layer, 1.001 * gathered
        steps = case.micro_steps
        exact = learnt * steps
        return {"reduce_scatter": (exact, exact), "all_gather": (least * steps, most * steps)}
    reduced = learnt * (case.micro_steps if strategy.stage == 2 else 1)
    found = {"all_reduce": (reduced, reduced + 256)}
    filled = 7 * 4 * 2 * case.ranks
    return found | ({"all_gather": (learnt, learnt + filled)} if strategy.stage else {})


def check(case: Case, calls: Calls, others: dict[tuple, list[str]]) -> None:
    """AssertionError where a case does not follow theory, or `others` on another number of ranks."""
    found = tally(calls)
    theory = {} if case.strategy.endswith("_tp") else by_theory(case)
    for kind, (least, most) in theory.items():
        size = found[kind][1]
        assert least <= size <= most, f"{case}: {kind} of {size} bytes, not of {least} to {most}"
    kinds = [kind for kind, *_ in calls]
    before = others.setdefault((case.strategy, case.model, case.micro_steps), kinds)
    assert before == kinds, f"{case}: other calls than on fewer ranks"


def table(cases: list[Case], micro: bool, kept: tables.Kept) -> list[str]:
    """The lines of a table of made-up ranks, each checked."""
    lines = head(micro)
    kinds: dict[tuple, list[str]] = {}
    for case in cases:
        calls = of_all_places(case, kept)
        check(case, calls, kinds)
        lines.append(row(case, tally(calls)))
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro", action="store_true", help="the micro model of the tests")
    parser.add_argument("--real", action="store_true", help="compare with two and four real ranks")
    parser.add_argument("--small", action="store_true", help="two cases of the micro model alone")
    parser.add_argument("--pipes", action="store_true", help="pipelines, on real ranks")
    parser.add_argument("--only", nargs="+", metavar="STRATEGY")
    parser.add_argument("--ranks", nargs="+", type=int, metavar="N")
    parser.add_argument("--model", nargs="+", metavar="PRESET")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="what was counted so far")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    micro = args.micro or args.real or args.small
    chosen = PIPES if args.pipes else SMALL if args.small else MICRO if micro else SIZES
    cases = [
        case
        for case in chosen
        if (not args.only or case.strategy in args.only)
        and (not args.ranks or case.ranks in args.ranks)
        and (not args.model or case.model in args.model)
    ]
    if args.real:
        measure([case for case in cases if case.ranks <= 4])
        return
    if args.pipes:
        name, lines = "collectives of pipelines", of_pipes(cases)
    else:
        name = "collectives of the micro model" if micro else "collectives at real size"
        lines = table(cases, micro, tables.Kept(args.keep))
    print("\n".join(lines))
    if args.write:
        tables.write(name, lines)


if __name__ == "__main__":
    main()
