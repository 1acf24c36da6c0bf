"""Counts the collectives of a step: the real engine and DeepSpeed on made-up ranks, fake tensors at real size.

    python tools/bench/scale_collectives.py [--micro | --real | --small] [--only STRATEGY ...] [--ranks N ...]
        [--keep FILE] [--write]

Each case is a fork of this process. The third step is counted; it must repeat the second, call by call. --micro counts
the micro model of the tests, and --real the same on two and four real ranks, where each count must be that of made-up
ones; there the fourth step is counted, since in the second DeepSpeed compares its traces. Spread experts are counted on
real ranks alone. --write puts the table into docs/evidence/many-ranks.md. With --keep a call resumes where an earlier
one with that file was stopped.
"""

import argparse
import json
import multiprocessing
import os
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
from molmo_ds.testing.twin.counts import fake_batch

TOKENS = 2304  # of a sequence at real size
CROPS = 13
STEPS = 3
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "reduce", "broadcast", "all_to_all")
Tally = dict[str, list[int]]  # kind -> calls, bytes


@dataclass(frozen=True)
class Case:
    """A strategy with a model on so many ranks; `model` is a preset, or the micro model with a family's decoder."""

    strategy: str
    model: str
    ranks: int
    micro_steps: int = 1

    @property
    def micro(self) -> bool:
        """Whether it is the micro model."""
        return self.model in ("qwen2", "olmoe")

    @property
    def spread(self) -> bool:
        """Whether experts are, whose messages are as long as their tokens are many: fake ones cannot say."""
        return self.strategy.endswith("_ep")

    @property
    def name(self) -> str:
        """For the file of what is kept."""
        return f"{self.strategy} {self.model} {self.ranks} {self.micro_steps}"

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
SMALL = tuple(Case(name, "qwen2", 1024) for name in ("zero1", "zero3"))
MICRO = (
    *(Case(f"zero{stage}", "qwen2", 2, steps) for stage in range(4) for steps in (1, 4)),
    *(Case(name, "qwen2", 4, 2) for name in OF_SEVEN),
    *(Case(name, "olmoe", 4, 2) for name in ("zero2_ep", "zero3_ep", "zero3_sp_ep")),
    *(Case(name, "qwen2", 1024, steps) for name in ("zero1", "zero2", "zero3") for steps in (1, 4)),
    *(Case(name, "qwen2", 1024, 2) for name in ("zero3_hpz", "zero3_sp")),
)
SIZES = (
    Case("zero3", "molmo_72b", 1024),
    Case("zero3", "molmo_72b", 64),
    *(Case(name, "molmo_7b_d", 8) for name in OF_SEVEN),
    Case("zero3", "molmo_7b_d", 8, micro_steps=2),
    Case("zero3", "molmo_7b_d", 64),
    Case("zero3", "molmoe_1b", 256),
    Case("zero3", "molmo2_8b", 512),
)


def count(case: Case) -> Tally:
    """The tally of the third step on made-up ranks, which must be that of the second, call by call."""
    world = collectives.pretend(case.ranks)
    config = case.config()
    given = shares(case, config)
    # shared already, where there were numbers
    whole = mock.patch.object(DeepSpeedEngine, "share", lambda _, batch: batch)
    with collectives.without_memory(), whole:
        engine = build_engine(config, world)
        steps = []
        for _ in range(STEPS):
            parts = [without_numbers(batch) for batch in given]
            with collectives.Recorder() as recorder:
                engine.train_step(parts)
            steps.append(recorder.calls)
    return checked(steps)


def shares(case: Case, config: RunConfig) -> list[Batch]:
    """The micro-batches of rank 0, with numbers, by which the tokens and pictures of a sequence are dealt out."""
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
        given = [part(batch, 0, strategy.sequence) for batch in given]
    return given


def without_numbers(batch: Batch) -> Batch:
    """A batch of the same sizes."""
    return type(batch)(**{name: torch.empty_like(x) for name, x in vars(batch).items()})


def checked(steps: list[list[collectives.Call]], spread: bool = False) -> Tally:
    """The tally of the last step. AssertionError if the one before made others, or any carried objects.

    Args:
        spread: sizes may differ, which depend on the tokens that experts get.
    """
    last, before = (
        [replace(call, elements=0) if spread else call for call in calls] for calls in steps[-2:]
    )
    assert last == before, "the last step differs from the one before"
    assert not any(call.of_objects for call in steps[-1]), "objects are exchanged in a step"
    return {kind: list(found) for kind, found in collectives.tally(steps[-1]).items()}


def really(world: World, case: Case) -> Tally:
    """The same of a real rank."""
    config = case.config()
    engine = build_engine(config, world)
    steps = []
    for step in range(1, STEPS + 2):
        parts = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
        with collectives.Recorder() as recorder:
            engine.train_step(parts)
        steps.append(recorder.calls)
    return checked(steps, case.spread)


def _send(case: Case, end: Connection) -> None:
    end.send(json.dumps(count(case)))
    end.close()
    os._exit(0)  # DeepSpeed would wait for ranks that are not there


def counted(case: Case) -> Tally:
    """`count` in a process of its own, or with spread experts what real ranks make. AssertionError if it died."""
    if case.spread:
        return run_ranks(really, case.ranks, case, timeout=900)[0]
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
        made_up = counted(case)
        for rank, found in enumerate(run_ranks(really, case.ranks, case, timeout=900)):
            assert found == made_up, f"{case}: rank {rank} made {found}, a made-up one {made_up}"
        print(f"{case.name}: as counted", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro", action="store_true", help="the micro model of the tests")
    parser.add_argument("--real", action="store_true", help="compare with two and four real ranks")
    parser.add_argument("--small", action="store_true", help="two cases of the micro model alone")
    parser.add_argument("--only", nargs="+", metavar="STRATEGY")
    parser.add_argument("--ranks", nargs="+", type=int, metavar="N")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="what was counted so far")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    micro = args.micro or args.real or args.small
    chosen = SMALL if args.small else MICRO if micro else SIZES
    cases = [
        case
        for case in chosen
        if (not args.only or case.strategy in args.only)
        and (not args.ranks or case.ranks in args.ranks)
    ]
    if args.real:
        measure([case for case in cases if case.ranks <= 4 and not case.spread])
        return
    kept = tables.Kept(args.keep)
    lines = head(micro)
    for case in cases:
        if case.name not in kept.found:
            began = time.monotonic()
            kept.add(case.name, counted(case))
            print(f"{case.name}: {time.monotonic() - began:.0f} s", flush=True)
        lines.append(row(case, kept.found[case.name]))
    print("\n".join(lines))
    if args.write:
        tables.write(
            "collectives of the micro model" if micro else "collectives at real size", lines
        )


if __name__ == "__main__":
    main()
