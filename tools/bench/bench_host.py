"""CPU-seconds of the host for a micro-step at a real depth and tiny widths, by strategy: the price of the hooks.

python tools/bench/bench_host.py [--rounds N] [zero1 zero3 ...]

prints a table. ZeRO-3 is measured twice in turn: as DeepSpeed makes it, and with engine/zero3_hooks's lighten.
On the CPU the products of the tiny network are in it as well; `zero1` shows what is left without hooks.
"""

import argparse
import statistics
import time
from dataclasses import replace
from unittest import mock

from molmo_ds.config import RunConfig
from molmo_ds.engine import Engine, build_engine, zero3_hooks
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import fresh_groups
from molmo_ds.testing.ranks import run_ranks

VISION_LAYERS = 24
TEXT_LAYERS = 28
RANKS = 2
SKIPPED = 2  # steps until DeepSpeed has its trace
Key = tuple[str, str, bool]  # strategy, what is computed again, whether hooks are lightened


def measure(world: World, keys: list[Key], rounds: int) -> None:
    """Print a row for each key: CPU-seconds of rank 0 for each of `rounds` steps of one micro-batch."""
    model = synthetic.MODEL
    deep = replace(
        model,
        text=replace(model.text, num_hidden_layers=TEXT_LAYERS),
        vision=replace(model.vision, num_hidden_layers=VISION_LAYERS),
    )
    for strategy, recomputed, lightened in keys:
        config = synthetic.config(
            model=deep,
            strategy=f"ds_configs/{strategy}.json",
            global_batch=RANKS,
            micro_batch=1,
            activation_checkpointing=recomputed,
        )
        fresh_groups()
        engine = built(config, world, lightened)
        seconds = []
        for step in range(1, rounds + SKIPPED + 1):
            batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            began = time.process_time()
            engine.train_step(batches)
            seconds.append(time.process_time() - began)
        engine.close()
        kept = [1e3 * value for value in seconds[SKIPPED:]]
        cells = [
            strategy,
            recomputed,
            hooks_of(strategy, lightened),
            f"{statistics.median(kept):.0f}",
            f"{min(kept):.0f}",
        ]
        if world.rank == 0:
            print(f"| {' | '.join(cells)} |", flush=True)


def built(config: RunConfig, world: World, lightened: bool) -> Engine:
    """The engine, with DeepSpeed's own hooks where they are not lightened."""
    if lightened:
        return build_engine(config, world)
    with mock.patch.object(zero3_hooks, "lighten", lambda *_, **__: None):
        return build_engine(config, world)


def hooks_of(strategy: str, lightened: bool) -> str:
    """The cell of a row that says which hooks ran; only ZeRO-3 has any."""
    if not strategy.startswith("zero3"):
        return "-"
    return "by layer" if lightened else "DeepSpeed's"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("strategies", nargs="*", default=["zero1", "zero3"])
    given = parser.parse_args()
    keys = []
    for recomputed in ("none", "full"):
        for strategy in given.strategies:
            if strategy.startswith("zero3"):
                keys.append((strategy, recomputed, False))
            keys.append((strategy, recomputed, True))
    print("| strategy | computed again | hooks | CPU-ms of a step, median | least |")
    print("|---|---|---|---|---|", flush=True)
    run_ranks(measure, RANKS, keys, given.rounds, timeout=3600)


if __name__ == "__main__":
    main()
