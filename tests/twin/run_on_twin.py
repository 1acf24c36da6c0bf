"""Runs the cases on the twin, in a process of its own whose ranks are forks, for test_twin.py.

python -m molmo_ds.testing.twin tests/twin/run_on_twin.py FOLDER [--all] [--write] [WORD ...]

writes FOLDER/found.pt. Words choose, among one case of each strategy in fp32 and bf16, those whose name holds them all,
and nothing else is run. --write puts what was counted into the tables of docs/evidence/gpu.md, which test_twin.py takes
for budgets; rows of cases that were not run stay.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import twin_cases
from tqdm import tqdm

from molmo_ds.ops import dispatch
from molmo_ds.testing import ranks, tables
from molmo_ds.testing.run_files import make
from molmo_ds.testing.serving import weights_folder
from molmo_ds.testing.twin import counts

SECONDS = 60  # that a case may take on a busy machine
SILENCE = 8  # timeout_seconds of runs that lose a rank
LOST = ("killed", "stopped", "late")


def strategies(everything: bool, words: list[str]) -> dict[twin_cases.Case, list[dict[str, Any]]]:
    """What each rank left of each case; AssertionError where ranks log different numbers."""
    cases = twin_cases.one_of_each() if words else twin_cases.table(everything)
    cases = [case for case in cases if all(word in case.name for word in words)]
    kernels = None if everything else "torch"
    found: dict[twin_cases.Case, list[dict[str, Any]]] = {}
    for size in sorted({case.ranks for case in cases}):
        chosen = [case for case in cases if case.ranks == size]
        limit = SECONDS * (1 + len(chosen))
        left = ranks.run_ranks(twin_cases.train, size, chosen, kernels, timeout=limit)
        for case in chosen:
            logs = [rank[case]["log"] for rank in left]
            assert all(log == logs[0] for log in logs), f"{case.name}: ranks log different numbers"
            found[case] = [rank[case] for rank in left]
    return found


def whole_run(folder: Path) -> tuple[list[int], str]:
    """train.py on two ranks in bf16 under ZeRO-3, from shards to DONE: exit codes and what it said."""
    both = run_of_two(folder, "precision=bf16", "max_steps=2")
    ended = [run.finish(4 * SECONDS) for run in both]
    return [code for code, _ in ended], "\n".join(said for _, said in ended)


def run_of_two(folder: Path, *settings: str) -> list[ranks.Forked]:
    """train.py on two ranks, begun."""
    arguments = [*make(folder), f"out={folder / 'out'}", *settings]
    port = ranks.free_port()
    with dispatch.use("torch"):  # which the forks keep
        return [
            ranks.Forked(arguments, folder / f"said-{rank}", ranks.rank_environment(rank, 2, port))
            for rank in range(2)
        ]


def steps_of(folder: Path) -> int:
    """Steps that a run has logged."""
    log = folder / "out/log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def lost(folder: Path, how: str) -> tuple[int | None, float]:
    """What becomes of rank 0 when rank 1 is killed, stopped, or late by half the time-out: (its exit code, seconds).

    None = it goes on.
    """
    folder = folder / how
    both = run_of_two(folder, f"timeout_seconds={SILENCE}", "max_steps=100000")
    while steps_of(folder) < 2 and both[0].running():
        time.sleep(0.05)
    began = time.monotonic()
    both[1].kill(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    if how == "late":
        time.sleep(SILENCE / 2)
        before = steps_of(folder)
        both[1].kill(signal.SIGCONT)
        while both[0].running() and steps_of(folder) < before + 3:
            time.sleep(0.05)
    while both[0].running() and how != "late" and time.monotonic() < began + 5 * SILENCE:
        time.sleep(0.05)
    took = time.monotonic() - began
    code = None if both[0].running() else both[0].code
    for run in both:
        run.kill(signal.SIGKILL)
    return code, took


def counted(names: list[str]) -> dict[str, list[counts.Counted]]:
    """The steps of real size by name; runs autograd, so that nothing may be forked afterwards."""
    return {name: counts.step(*twin_cases.STEPS_OF_REAL_SIZE[name]) for name in names}


def write_tables(found: dict[str, Any]) -> None:
    """Put what was counted into docs/evidence/gpu.md."""
    rows: dict[str, list[list[str]]] = {}
    for row in tables.read("waits of a step"):
        rows.setdefault(row[0], []).append(row)
    for case, left in found["strategies"].items():
        if case.precision == "bf16":
            places = twin_cases.most_waits(left).items()
            rows[case.name] = [[case.name, str(n), a or "-", b or "-"] for (a, b), n in places]
    waits = ["| case | waits | ours | DeepSpeed's |", "|---|---|---|---|"]
    waits += [f"| {' | '.join(row)} |" for each in rows.values() for row in each]
    tables.write("waits of a step", waits)
    if "counted" not in found:
        return
    steps = ["| step | part | launches | pointwise GB | TFLOP |", "|---|---|---|---|---|"]
    for name, parts in found["counted"].items():
        for part in parts:
            sizes = f"{part.pointwise / 1e9:.1f} | {part.flops / 1e12:.1f}"
            steps.append(f"| {name} | {part.part} | {part.launches} | {sizes} |")
    tables.write("kernels of a step", steps)


def main() -> None:
    """Run everything, or the strategies that words choose."""
    folder = Path(sys.argv[1])
    everything = "--all" in sys.argv
    writes = "--write" in sys.argv
    words = [word for word in sys.argv[2:] if not word.startswith("--")]
    steps = list(twin_cases.STEPS_OF_REAL_SIZE)
    weights = str(weights_folder(folder))
    saved = twin_cases.RESUMED_BY_HAND if everything else twin_cases.RESUMED
    parts = {
        "strategies": lambda: strategies(everything, words),
        "apart": lambda: ranks.run_ranks(twin_cases.apart, 2, weights, timeout=6 * SECONDS),
        "resumed": lambda: ranks.run_ranks(
            twin_cases.resume, 2, str(folder), saved, timeout=6 * SECONDS
        ),
        "other_order": lambda: ranks.run_ranks(twin_cases.other_order, 2, timeout=2 * SECONDS),
        "crossed": lambda: ranks.run_ranks(twin_cases.crossed, 2, timeout=2 * SECONDS),
        "planted": lambda: ranks.run_ranks(twin_cases.planted, 1)[0],
        "late": lambda: ranks.run_ranks(twin_cases.late, 2, timeout=4 * SECONDS)[0],
        "whole_run": lambda: whole_run(folder),
        "lost": lambda: {how: lost(folder, how) for how in (LOST if everything else ())},
        "counted": lambda: counted(steps if everything or writes else steps[:1]),
    }
    found = {}
    for name in tqdm(["strategies"] if words else list(parts), desc="on the twin"):
        began = time.perf_counter()
        found[name] = parts[name]()
        tqdm.write(f"{name}: {time.perf_counter() - began:.1f} s")
        torch.save(found, folder / "found.pt")
    if writes:
        write_tables(found)


if __name__ == "__main__":
    main()
