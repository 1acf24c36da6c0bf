"""Trains tiny models under every strategy and in one plain process, and tables how far losses and weights are apart.

    python tools/bench/compare_strategies.py --ranks 2 [--strategies zero3 zero3_sp] [--families qwen2]
        [--write "2 ranks"]

Every global batch holds unequal token counts and loss weights, packed documents, message trees, and for some ranks no
picture. A decoder named `unlike` has batches whose ranks hold amounts on both sides of every threshold of the kernels
(molmo_ds/testing/unlike.py). `q3` and `o3` are Molmo2 on Qwen3 and OLMo3, whose ranks hold pictures with windows that
join crops, several pictures, videos and text. Two rows tell what the others mean: how far the plain process is from
itself when its first weights are rounded otherwise (what must be allowed), and when its gradients are 1 % too large
(what must be seen). --write replaces the table of that name in docs/evidence/equality.md. Takes the batches of
molmo_ds/testing.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from tqdm import tqdm

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, optim, pipeline  # noqa: F401 (before the fork)
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.testing import synthetic, unlike
from molmo_ds.testing.oracle import Run, difference, family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.tables import ROOT, cpu, write

LANES = 16  # sequences of a global batch
# of synthetic.config's rates, whose 20 steps without clipping amplify rounding tenfold
SGD_RATE = 0.25
SHOWN = {"sgd": "SGD", "adamw": "AdamW"}
BF16 = [(strategy, times) for strategy in ("zero1", "zero2", "zero3") for times in (1, 2, 4, 8, 16)]
ALLOWED = 1e-5  # loss difference under SGD in fp32
UNLIKE = " unlike"  # after the name of a decoder
Cell = tuple[str, str, str, int, str]  # family, strategy, optimizer, accumulation, precision


def run_config(cell: Cell, data_size: int, steps: int) -> RunConfig:
    """The run of a cell on `data_size` replicas; no clipping under SGD, clipping that acts under AdamW."""
    name, strategy, optimizer, accumulation, precision = cell
    if name.endswith(UNLIKE):
        micro_batch = max(1, LANES // data_size // accumulation)
        model = family(name.removesuffix(UNLIKE))
        return unlike.run_config(model, f"ds_configs/{strategy}.json", steps, LANES, micro_batch)
    base = synthetic.config() if optimizer == "sgd" else synthetic.adamw()
    settings = base.optim
    if optimizer == "sgd":
        parts = {part: getattr(settings, part) for part in optim.COMPONENTS}
        slower = {part: replace(value, lr=SGD_RATE * value.lr) for part, value in parts.items()}
        settings = replace(settings, **slower)
    return replace(
        base,
        optim=settings,
        model=family(name),
        strategy=f"ds_configs/{strategy}.json",
        precision=precision,
        global_batch=LANES,
        micro_batch=max(1, LANES // data_size // accumulation),
        max_steps=steps,
    )


def lanes_of(name: str, steps: int) -> Callable[[int], list[Batch]] | None:
    """The sequences of each step of the plain process for a decoder; None = those of synthetic.py."""
    if not name.endswith(UNLIKE):
        return None
    shapes = unlike.extremes(LANES, steps)
    return lambda step: unlike.lanes(shapes, step)


def micro_batches(cell: Cell, config: RunConfig, step: int, rank: int, size: int) -> list[Batch]:
    """A rank's share of a step of a cell."""
    if cell[0].endswith(UNLIKE):
        return unlike.micro_batches(
            config, unlike.extremes(LANES, config.max_steps), step, rank, size
        )
    return synthetic.micro_batches(config, step, rank, size)


def under_strategies(world: World, cells: list[Cell], steps: int) -> dict[Cell, Run | str]:
    """Losses and weights of each cell through the engine, or the sentence with which it is refused."""
    out: dict[Cell, Run | str] = {}
    for cell in tqdm(cells, disable=world.rank > 0, desc=f"{world.size} ranks"):
        fresh_groups()
        try:
            strategy = read_strategy(f"ds_configs/{cell[1]}.json")
            config = run_config(cell, strategy.data_parallel_size(world.size), steps)
            engine = build_engine(config, world)
        except ValueError as error:
            out[cell] = str(error)
            continue
        losses = []
        for step in range(1, steps + 1):
            batches = micro_batches(cell, config, step, engine.data_rank, engine.data_size)
            losses.append(engine.train_step(batches)["loss"])
        out[cell] = losses, dict(engine.full_state())
    return out


def table(results: dict[Cell, Run | str], noise: dict[Cell, Run | str], steps: int) -> list[str]:
    """Markdown rows, the worst of the accumulations in each; the rows that explain the others come first.

    Args:
        noise: bf16 cells of one process, empty in fp32.
    """
    optimizers = [name for name in SHOWN if any(cell[2] == name for cell in results)]
    heads = [f"{SHOWN[name]} loss | {SHOWN[name]} weights" for name in optimizers]
    lines = [
        f"| strategy | decoder | {' | '.join(heads)} |",
        "|---|---|" + "---|---|" * len(optimizers),
    ]
    references: dict[tuple, Run] = {}
    allowed: dict[tuple, float] = {}
    for name in dict.fromkeys(cell[0] for cell in results):
        first, second = [], []
        for optimizer in optimizers:
            config = run_config((name, "zero0", optimizer, 1, "fp32"), 1, steps)
            lanes = lanes_of(name, steps)
            references[name, optimizer] = reference = plain(config, lanes=lanes)[::2]
            if noise:
                pairs = [
                    difference(run, reference)
                    for c, run in noise.items()
                    if (c[0], c[2]) == (name, optimizer)
                ]
                spreads = [
                    (statistics.mean(values), statistics.stdev(values)) for values in zip(*pairs)
                ]
                allowed[name, optimizer] = spreads[0][0] + 3 * spreads[0][1]
                first += [f"{mean:.1e} +- {deviation:.1e}" for mean, deviation in spreads]
                continue
            allowed[name, optimizer] = ALLOWED
            first += [
                f"{x:.1e}"
                for x in difference(plain(config, rounding=1e-7, lanes=lanes)[::2], reference)
            ]
            second += [
                f"{x:.1e}"
                for x in difference(plain(config, too_large=0.01, lanes=lanes)[::2], reference)
            ]
        what = f"{len(BF16)} runs in bf16" if noise else "first weights rounded otherwise"
        lines.append(f"| one process, {what} | {name} | {' | '.join(first)} |")
        if second:
            lines.append(
                f"| one process, gradients 1 % too large | {name} | {' | '.join(second)} |"
            )
    worst, over, refused = 0.0, [], {}
    for strategy, name in dict.fromkeys((cell[1], cell[0]) for cell in results):
        here = {
            cell: run for cell, run in results.items() if (cell[1], cell[0]) == (strategy, name)
        }
        legal = {cell: run for cell, run in here.items() if not isinstance(run, str)}
        if not legal:
            refused.setdefault((strategy, next(iter(here.values()))), []).append(name)
            continue
        row, fewer = [], sorted({cell[3] for cell in legal}) if len(legal) < len(here) else []
        for optimizer in optimizers:
            pairs = [
                difference(run, references[name, optimizer])
                for cell, run in legal.items()
                if cell[2] == optimizer
            ]
            row += [f"{max(values):.1e}" for values in zip(*pairs)]
            if optimizer == "sgd":
                loss = max(loss for loss, _ in pairs)
                worst = max(worst, loss / allowed[name, optimizer])
                over += [f"{strategy} {name}"] * (loss > allowed[name, optimizer])
        lines.append(
            f"| {strategy}{''.join(f', {n} micro-steps' for n in fewer)} | {name} | {' | '.join(row)} |"
        )
    lines += [
        f"| {row[0]} | {', '.join(names)} | refused: {row[1]} |" for row, names in refused.items()
    ]
    if "sgd" in optimizers:
        limit = "what one process in bf16 has at three deviations" if noise else f"{ALLOWED:.0e}"
        above = ", ".join(over) or "none"
        lines += [
            "",
            f"Loss differences under SGD: at most {worst:.2f} times {limit}; above it: {above}.",
        ]
    return lines


def main() -> None:
    """Run the cells, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    everything = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
    parser.add_argument("--strategies", nargs="+", default=everything, choices=everything)
    parser.add_argument(
        "--families",
        nargs="+",
        help="default: all, and under SGD in fp32 two of them with `unlike`",
    )
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adamw"])
    parser.add_argument("--accumulations", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--write", metavar="NAME", help="replace the table `equality at NAME` of docs/evidence"
    )
    arguments = parser.parse_args()
    if arguments.families is None:
        arguments.families = ["qwen2", "llama", "olmo", "olmo2", "olmoe", "q3", "o3"]
        if arguments.optimizers == ["sgd"] and arguments.precision == "fp32":
            arguments.families += [f"qwen2{UNLIKE}", f"olmoe{UNLIKE}"]
    elif any(name.endswith(UNLIKE) for name in arguments.families) and (
        arguments.optimizers != ["sgd"] or arguments.precision != "fp32"
    ):
        raise ValueError(
            "Decoders with `unlike` are compared with --optimizers sgd --precision fp32 alone."
        )
    cells = [
        (name, strategy, optimizer, accumulation, arguments.precision)
        for strategy in arguments.strategies
        for name in arguments.families
        for optimizer in arguments.optimizers
        for accumulation in arguments.accumulations
    ]
    began = time.strftime("%Y-%m-%d")
    results: dict[Cell, Run | str] = {}
    for strategy in arguments.strategies:
        here = [cell for cell in cells if cell[1] == strategy]
        results |= run_ranks(
            under_strategies, arguments.ranks, here, arguments.steps, timeout=3600
        )[0]
    noise: dict[Cell, Run | str] = {}
    if arguments.precision == "bf16":
        names = [
            (name, optimizer) for name in arguments.families for optimizer in arguments.optimizers
        ]
        here = [
            (name, strategy, optimizer, times, "bf16")
            for name, optimizer in names
            for strategy, times in BF16
        ]
        noise = run_ranks(under_strategies, 1, here, arguments.steps, timeout=3600)[0]
    command = f"python tools/bench/compare_strategies.py {shlex.join(sys.argv[1:])}"
    machine = f"{cpu()}, {torch.get_num_threads()} thread per rank, torch {torch.__version__}"
    lines = [f"`{command}`, {began}, {machine}:", "", *table(results, noise, arguments.steps)]
    print("\n".join(lines))
    if arguments.write:
        write(f"equality at {arguments.write}", lines)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"compare_strategies: {error}")
