"""Trains the quickstart's own shards under every strategy file, each through its launcher, and tables the differences.

    python tools/bench/compare_launches.py runs/quickstart [--ranks 2 4] [--strategies zero2 zero3_sp] [--write]

A cell is `deepspeed --num_accelerators N --module molmo_ds.train examples/digits/questions.yaml strategy=... ` with SGD
and micro-batches of one sequence, dense and with four experts, under each packing. Its losses and gradient norms of
every step are compared with those of zero1.json on the same number of ranks. --write replaces the table of that number
of ranks in docs/evidence/equality.md. RUN is a folder of examples/quickstart.sh (16 steps are enough); finished cells
are kept in RUN/launches.jsonl, so that the same command continues where it was stopped.
"""

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from molmo_ds.engine.launching.ports import free_port
from molmo_ds.testing.cells import COMPARED, MODELS, Cell, words
from molmo_ds.testing.tables import ROOT, cpu, write

PACKINGS = ("pack", "to_max", "to_128")
KEPT = "launches.jsonl"
STEPS = 4
MEASURE = "zero1"
ALLOWED = 2e-5  # relative; float32 and 4 unclipped steps of SGD


def launch(run: Path, cell: Cell, folder: Path) -> list[dict[str, float]] | str:
    """The log of a cell's steps, or the sentence with which it is refused; RuntimeError for any other end."""
    out = folder / "-".join(map(str, cell))
    launcher = [Path(sys.executable).parent / "deepspeed", "--num_accelerators", cell[0]]
    port = ["--master_port", free_port()]  # others of this machine may have the default one
    command = [*launcher, *port, "--module", "molmo_ds.train", *words(run, cell, out, STEPS)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [str(word) for word in command], env=environment, cwd=folder, text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode == 0:
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [line for line in lines if line["step"] <= STEPS]
    said = re.search(r"^molmo_ds: (.*)$", done.stdout, re.M)
    if said is None or "Traceback" in done.stdout:
        raise RuntimeError(f"{cell} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return said[1].replace(f"{ROOT}/", "")


def difference(ours: list[dict[str, float]], measure: list[dict[str, float]]) -> float:
    """The largest relative difference of a loss, a norm or a count in any step."""
    worst = 0.0
    for mine, theirs in zip(ours, measure, strict=True):
        for key in COMPARED:
            worst = max(worst, abs(mine[key] - theirs[key]) / max(abs(theirs[key]), 1e-6))
    return worst


def finished(path: Path) -> dict[Cell, list[dict[str, float]] | str]:
    """The cells of an earlier call."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(cell): result for cell, result in map(json.loads, lines)}


def table(results: dict[Cell, list[dict[str, float]] | str]) -> list[str]:
    """Markdown: a row for each strategy and model, a column for each number of ranks and packing."""
    columns = list(dict.fromkeys((ranks, packing) for ranks, _, _, packing in results))
    rows = list(dict.fromkeys((strategy, model) for _, strategy, model, _ in results))
    lines = [
        "| strategy | model | "
        + " | ".join(f"{ranks} ranks, {packing}" for ranks, packing in columns)
        + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    refused: dict[str, list[str]] = {}
    worst = 0.0
    for strategy, model in rows:
        cells = []
        for ranks, packing in columns:
            found = results.get((ranks, strategy, model, packing))
            if isinstance(found, str):
                refused.setdefault(found, []).append(f"{strategy} {model}")
                cells.append("refused")
                continue
            apart = difference(found, results[ranks, MEASURE, model, packing])
            worst = max(worst, apart)
            cells.append(f"{apart:.1e}")
        lines.append(f"| {strategy} | {model} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Largest relative difference of a loss, norm or count: {worst:.1e} (allowed: {ALLOWED:.0e}).",
    ]
    lines += [
        "",
        *(
            f"- refused ({', '.join(dict.fromkeys(names))}): {said}"
            for said, names in refused.items()
        ),
    ]
    return (
        lines
        if worst <= ALLOWED and math.isfinite(worst)
        else [*lines, "", "**Above what is allowed.**"]
    )


def main() -> None:
    """Launch the cells one after the other, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
    parser.add_argument("run", type=Path, help="a folder of examples/quickstart.sh")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--strategies", nargs="+", default=everything, choices=everything)
    parser.add_argument("--packings", nargs="+", default=list(PACKINGS), choices=PACKINGS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--write", action="store_true", help="replace the table in docs/evidence/equality.md"
    )
    arguments = parser.parse_args()
    run = arguments.run.absolute()
    if not (run / "data/questions").is_dir():
        raise ValueError(
            f"{run} is no folder of the quickstart; make one: bash examples/quickstart.sh --out {run}"
        )
    began = time.strftime("%Y-%m-%d")
    strategies = list(dict.fromkeys([MEASURE, *arguments.strategies]))
    cells = [
        (ranks, strategy, model, packing)
        for ranks in arguments.ranks
        for strategy in strategies
        for model in arguments.models
        for packing in arguments.packings
    ]
    kept = finished(run / KEPT)
    results: dict[Cell, list[dict[str, float]] | str] = {}
    refused: dict[tuple, str] = {}
    with tempfile.TemporaryDirectory() as folder, open(run / KEPT, "a") as log:
        for cell in tqdm(cells, unit="launch"):
            known = refused.get(cell[:3])  # a packing refuses nothing
            results[cell] = kept.get(cell) or known or launch(run, cell, Path(folder))
            if isinstance(results[cell], str):
                refused[cell[:3]] = results[cell]
            if cell not in kept:
                print(json.dumps([cell, results[cell]]), file=log, flush=True)
    command = f"python tools/bench/compare_launches.py {shlex.join(sys.argv[1:])}"
    lines = [f"`{command}`, {began}, {cpu()}:", "", *table(results)]
    print("\n".join(lines))
    if arguments.write:
        write(f"launches at {' and '.join(map(str, arguments.ranks))} ranks", lines)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError) as error:
        sys.exit(f"compare_launches: {error}")
