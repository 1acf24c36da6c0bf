"""Signals this machine's processes of one run, found by a mark in their environment.

supervise.py starts it on other hosts by ssh as a script of its own, without site-packages: python -S signal_run.py
SIGNAL OUT [--ranks-only]. It therefore imports the standard library only.
"""

import os
import signal
import sys
import time
from pathlib import Path

# every process of a run has it in its environment, with the run's folder as its value
MARK = "MOLMO_DS_SUPERVISED"


def signal_run(out: str, number: int, ranks_only: bool = False) -> None:
    """Signal the processes of the run in `out`, or only its ranks; after SIGKILL wait until they are gone."""
    deadline = time.monotonic() + 10
    while members := marked(out):
        for pid, (parent, is_rank) in members.items():
            # its loaders end with it
            if ranks_only and not (is_rank and not members.get(parent, (0, False))[1]):
                continue
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number != signal.SIGKILL or time.monotonic() > deadline:
            return
        time.sleep(0.1)


def marked(out: str) -> dict[int, tuple[int, bool]]:
    """Process -> (its parent, whether it is a rank or a rank's child) of the run in `out`, on this machine."""
    members = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone, or another user's
            continue
        if f"{MARK}={out}".encode() in variables and state != "Z":
            members[int(folder.name)] = int(parent), any(v.startswith(b"RANK=") for v in variables)
    return members


if __name__ == "__main__":
    signal_run(sys.argv[2], int(sys.argv[1]), "--ranks-only" in sys.argv)
