"""Runs the cases on the twin, in a process of its own whose ranks are forks, for test_twin.py.

`python -m molmo_ds.testing.twin tests/twin/run_on_twin.py FOLDER [--all] [WORD ...]` writes FOLDER/found.pt; words
choose the strategies whose case's name holds them all.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import twin_cases
from tqdm import tqdm

from molmo_ds.ops import dispatch
from molmo_ds.testing import ranks
from molmo_ds.testing.run_files import make
from molmo_ds.testing.serving import weights_folder

SECONDS = 60  # that a case may take on a busy machine


def strategies(everything: bool, words: list[str]) -> dict[twin_cases.Case, list[dict[str, Any]]]:
    """What each rank left of each case; AssertionError where ranks log different numbers."""
    cases = [case for case in twin_cases.table(everything) if all(w in case.name for w in words)]
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
    arguments = make(folder) + [f"out={folder / 'out'}", "precision=bf16", "max_steps=2"]
    port = ranks.free_port()
    with dispatch.use("torch"):  # which the forks keep
        both = [
            ranks.Forked(arguments, folder / f"said-{rank}", ranks.rank_environment(rank, 2, port))
            for rank in range(2)
        ]
    ended = [run.finish(4 * SECONDS) for run in both]
    return [code for code, _ in ended], "\n".join(said for _, said in ended)


def main() -> None:
    """Run everything, or the strategies that words choose."""
    folder = Path(sys.argv[1])
    everything = "--all" in sys.argv
    words = [word for word in sys.argv[2:] if word != "--all"]
    weights = str(weights_folder(folder))
    parts = {
        "strategies": lambda: strategies(everything, words),
        "apart": lambda: ranks.run_ranks(twin_cases.apart, 2, weights, timeout=6 * SECONDS),
        "resumed": lambda: ranks.run_ranks(twin_cases.resume, 2, str(folder), timeout=6 * SECONDS),
        "other_order": lambda: ranks.run_ranks(twin_cases.other_order, 2, timeout=2 * SECONDS),
        "whole_run": lambda: whole_run(folder),
    }
    found = {}
    for name in tqdm(["strategies"] if words else list(parts), desc="on the twin"):
        began = time.perf_counter()
        found[name] = parts[name]()
        tqdm.write(f"{name}: {time.perf_counter() - began:.1f} s")
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()
