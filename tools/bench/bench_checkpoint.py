"""How long a save holds the training up: asynchronous and synchronous, on the same engine in one run.

    python tools/bench/bench_checkpoint.py [--ranks 2] [--strategies zero1 zero3] [--width 512] [--rounds 5]
        [--folder DIR]

Stall: seconds that Engine.save holds the loop up. During an asynchronous save the steps continue while a thread
writes; what that costs them is the last column. Takes the batches of molmo_ds/testing.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.files import local
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks


def run_config(strategy: str, width: int) -> RunConfig:
    """A model whose state is mostly the decoder's; AdamW, whose state is twice the weights."""
    text = replace(
        synthetic.MODEL.text,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
    )
    text = replace(text, num_key_value_heads=text.num_attention_heads)
    model = replace(synthetic.MODEL, text=text)
    return synthetic.adamw(
        model=model, strategy=f"ds_configs/{strategy}.json", global_batch=4, keep_checkpoints=1
    )


def saves(world: World, config: RunConfig, rounds: int, folder: str) -> dict[str, list[float]]:
    """Seconds of steps and stalls; every round makes one save of each kind, so both see the same weather."""
    engine = build_engine(config, world)
    seen: dict[str, list[float]] = {
        name: [] for name in ("step", "async", "sync", "written", "step while writing")
    }
    done = 0

    def step(name: str) -> None:
        nonlocal done
        batch = synthetic.micro_batches(config, done, world.rank, world.size)
        began = time.perf_counter()
        engine.train_step(batch)
        done += 1
        seen[name].append(time.perf_counter() - began)

    for _ in tqdm(range(rounds + 1), disable=world.rank > 0, desc="saves"):
        for kind in ("sync", "async"):
            step("step")
            engine.writer.config = replace(config, async_save=kind == "async")
            world.barrier()
            began = time.perf_counter()
            engine.save(folder, {})
            seen[kind].append(time.perf_counter() - began)
            while any(world.gather(engine.writer.thread is not None)):
                step("step while writing")
            seen["written"] += [time.perf_counter() - began] if kind == "async" else []
    for kind in ("sync", "async", "written"):
        seen[kind] = seen[kind][1:]  # the first one also makes buffers
    seen["bytes"] = [float(sum(p.stat().st_size for p in Path(folder).glob("step-*/*")))]
    return seen


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--strategies", nargs="+", default=["zero1", "zero3"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder",
        type=local,
        default=None,
        help="on the disk to be measured (default: a temporary one)",
    )
    arguments = parser.parse_args()
    print(
        f"`python tools/bench/bench_checkpoint.py {' '.join(sys.argv[1:])}`, {time.strftime('%Y-%m-%d')}, ",
        end="",
    )
    print(f"{platform.machine()} CPU, torch {torch.__version__}, medians of {arguments.rounds}:\n")
    print(
        "| strategy | state | synchronous | asynchronous | share | written after | step | step meanwhile |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for strategy in arguments.strategies:
        config = run_config(strategy, arguments.width)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            seen = run_ranks(
                saves, arguments.ranks, config, arguments.rounds, folder, timeout=1200
            )[0]
        middle = {name: statistics.median(values) for name, values in seen.items() if values}
        times = [
            f"{1e3 * middle[name]:.0f} ms" for name in ("written", "step", "step while writing")
        ]
        print(
            f"| {strategy}, {arguments.ranks} ranks | {middle['bytes'] / 1e6:.0f} MB | {1e3 * middle['sync']:.0f} ms "
            f"| {1e3 * middle['async']:.0f} ms | {middle['async'] / middle['sync']:.0%} | {' | '.join(times)} |"
        )


if __name__ == "__main__":
    main()
