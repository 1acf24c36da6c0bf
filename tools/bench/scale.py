"""What start, resume and save cost as ranks grow: the code of a run counted at real size, with nothing real behind it.

    python tools/bench/scale.py [--small | --only MODEL:RANKS] [--keep FILE] [--write]

A stand-in (molmo_ds/testing/scale) plays one rank after the other; what all ranks do is that of the first, of the last,
and of one between them as often as there are others. "Before" is commit 3eabada, by the formulas of `Before`. --write
makes the tables of docs/evidence/scale.md. With --keep a call resumes where an earlier one with that file was stopped.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from molmo_ds import presets
from molmo_ds.testing import tables
from molmo_ds.testing.scale.case import Case
from molmo_ds.testing.scale.ranks import Network

COMMAND = "python tools/bench/scale.py --write"
CASES = {"molmo_7b_d": [64], "molmoe_1b": [256], "molmo2_8b": [512], "molmo_72b": [64, 1024]}
SMALL = {"molmo_7b_d": [64]}
ROW = tuple[str, str, str]  # what it is, before, now


@dataclass(frozen=True)
class Before:
    """What commit 3eabada does on `ranks` ranks, by reading it; bytes and files over all of them."""

    ranks: int
    weights: int  # bytes, fp32
    state: int  # bytes of a checkpoint
    shards: int  # files of the weights
    listing: int  # bytes of the JSON files of all ranks

    def from_weights(self, stage: int) -> float:
        """`open_source` compares every file with its checksum on every rank; then pieces, or all of it, are read."""
        return self.ranks + (1 if stage == 3 else self.ranks)

    def from_checkpoint(self, stage: int) -> float:
        """`find` does the same with all of a checkpoint, optimizer state included."""
        read = 1 if stage == 3 else self.ranks
        return (self.ranks * (self.state + self.listing) + read * self.weights) / self.weights

    def resume(self) -> float:
        """Checksums are divided over the ranks and pieces read once; every rank reads every rank's JSON."""
        return (2 * self.state + self.ranks * self.listing) / self.state

    def opened(self) -> int:
        """Of a resume: every rank's JSON on every rank, manifest, a file to compare and one to read."""
        return self.ranks * (self.ranks + 4)


def before_of(case: Case) -> Before:
    """What it was, for a case."""
    shards = len(list(case.source.glob("*.safetensors")))
    listing = json_bytes(case.network, 0, case.ranks) * case.ranks
    return Before(case.ranks, case.weights, case.state, shards, listing)


def from_weights(case: Case) -> Iterator[ROW]:
    """Starts from a folder of weights."""
    for stage in (3, 0):
        was = f"{before_of(case).from_weights(stage):,.1f}"
        now = f"{case.start(case.source, stage):.3f}"
        yield f"start from weights, ZeRO-{stage}: bytes / weights", was, now


def from_a_checkpoint(case: Case) -> Iterator[ROW]:
    """A start from a checkpoint's weights."""
    was = f"{before_of(case).from_checkpoint(3):,.1f}"
    now = f"{case.start(case.same):.3f}"
    yield "start from a checkpoint, ZeRO-3: bytes / weights", was, now


def from_nothing(case: Case) -> Iterator[ROW]:
    """Random weights."""
    now = f"{case.drawn():.3f}"
    yield "random weights, ZeRO-3: numbers drawn / needed", f"{case.ranks:,}.0", now


def saving(case: Case) -> Iterator[ROW]:
    """What a save copies and tells, and what rank 0 does with it."""
    index, seconds = case.index, case.merging()
    listing = before_of(case).listing
    count, size = case.copies()
    pieces = f"{len(case.found.pieces.columns['start']):,}"
    copied = (
        f"a rank's copy of {size / 1e9:.3f} GB in {count:,} tensors: bytes for which a step waits"
    )
    yield copied, f"{size / 1e9:.3f} GB", "0: the next passes compute meanwhile"
    yield f"index ({pieces} pieces)", f"{listing / 1e6:,.1f} MB", f"{index / 1e6:,.3f} MB"
    yield "pieces that a rank holds as objects", pieces, "0"
    yield "merging and opening the index on rank 0: CPU time", "-", f"{seconds:.2f} s"


def resumes(case: Case, ranks: int) -> Iterator[ROW]:
    """Going on from a checkpoint of so many ranks."""
    counts = case.resume(ranks)
    before = before_of(case)
    now = f"{counts.bytes / case.state:.3f}"
    yield f"resume from {ranks:,} ranks, ZeRO-3: bytes / state", f"{before.resume():,.2f}", now
    was = f"{before.opened() / case.ranks:,.0f}"
    yield "the same: files opened by a rank", was, f"{counts.opens / case.ranks:,.1f}"


def resume_here(case: Case) -> Iterator[ROW]:
    """From as many ranks."""
    return resumes(case, case.ranks)


def resume_elsewhere(case: Case) -> Iterator[ROW]:
    """From three quarters as many."""
    return resumes(case, case.ranks * 3 // 4)


PARTS = (from_weights, from_a_checkpoint, from_nothing, saving, resume_here, resume_elsewhere)


def json_bytes(network: Network, rank: int, size: int) -> int:
    """Bytes of the JSON file that a rank wrote before."""
    pieces = [
        {
            "name": piece.name,
            "shape": piece.shape,
            "start": piece.start,
            "size": piece.size,
            "stride": [],
            "keys": list(piece.tensors),
        }
        for piece in network.pieces(3, rank, size)
    ]
    return len(json.dumps({"pieces": pieces}))


def counted(preset: str, case: Case, kept: tables.Kept) -> Iterator[ROW]:
    """The rows of a case, its parts one after the other."""
    for part in PARTS:
        name = f"{preset}:{case.ranks} {part.__name__}"
        if name not in kept.found:
            kept.add(name, list(part(case)))
        yield from kept.found[name]


def table(cases: dict[str, list[int]], kept: tables.Kept) -> Iterator[str]:
    """The lines of the tables."""
    yield f"`{COMMAND}`, {time.strftime('%Y-%m-%d')}, {tables.cpu()}:"
    for preset, sizes in cases.items():
        for size in sizes:
            yield from ("", f"**{preset} on {size:,} ranks**", "")
            yield from ("| | before | now |", "|---|---|---|")
            with tempfile.TemporaryDirectory() as folder:
                case = Case(presets.get(preset), size, Path(folder))
                for row in counted(preset, case, kept):
                    yield f"| {' | '.join(row)} |"


def main() -> None:
    """Count and print, or write, the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the smallest case alone, as CI does")
    parser.add_argument("--only", metavar="MODEL:RANKS", help="one case, for example molmo_72b:64")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="rows counted so far")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    cases = SMALL if arguments.small else CASES
    if arguments.only:
        preset, _, size = arguments.only.partition(":")
        cases = {preset: [int(size)]}
    lines = []
    for line in table(cases, tables.Kept(arguments.keep)):
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        tables.write("scale", lines)


if __name__ == "__main__":
    main()
