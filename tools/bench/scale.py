"""What start, resume and save cost as ranks grow: the code of a run counted at real size, with nothing real behind it.

    python tools/bench/scale.py [--small | --only MODEL:RANKS] [--write]

A stand-in (molmo_ds/testing/scale) plays one rank after the other; what all ranks do is that of the first one, as often
as there are others, and of the last. "Before" is commit 3eabada, by the formulas of `Before`. --write makes the table
of docs/evidence/scale.md.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from molmo_ds import presets
from molmo_ds.config import OptimConfig, RunConfig
from molmo_ds.testing import tables
from molmo_ds.testing.scale import measures, saved
from molmo_ds.testing.scale.ranks import Network
from molmo_ds.weights.first_weights import begun_from
from molmo_ds.weights.index import INDEX

CASES = {"molmo_7b_d": [64], "molmoe_1b": [256], "molmo_72b": [64, 1024]}
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


def network_of(preset: str) -> Network:
    """A captioner's network, as its recipe trains it."""
    return Network.of(RunConfig(model=presets.get(preset), optim=OptimConfig(name="adamw")))


def rows(preset: str, size: int, folder: Path) -> Iterator[ROW]:
    """The table of one model on so many ranks."""
    network = network_of(preset)
    weights = 4 * network.numbers
    source = saved.weights(folder / "weights", network)
    parts = saved.parts(network, size)
    began = time.process_time()
    same = saved.commit(folder / "same", network, parts)
    seconds = time.process_time() - began
    found = measures.opened(same)
    files = found.manifest.files
    state = sum(facts.bytes for facts in files.values())
    listing = json_bytes(network, 0, size) * size
    before = Before(size, weights, state, len(list(source.glob("*.safetensors"))), listing)

    for name, place, was in (
        ("weights", source, before.from_weights),
        ("a checkpoint", same, before.from_checkpoint),
    ):
        begun = replace(network, config=replace(network.config, init_from=str(place)))
        first = begun_from(begun.config)
        for stage in (3, 0) if place == source else (3,):
            # under ZeRO-0 one rank reads each stretch for all: in sum they read what one rank by itself does
            ranks = size if stage == 3 else 1
            counts = measures.of_all(
                place,
                ranks,
                lambda rank, b=begun, f=first, s=stage, n=ranks: measures.start(b, f, s, rank, n),
            )
            now = f"{counts.bytes / weights:.3f}"
            yield f"start from {name}, ZeRO-{stage}: bytes / weights", f"{was(stage):,.1f}", now
    drawn = measures.drawn(network, 3, 0, size) * size
    once = measures.drawn(network, 0, 0, 1)
    yield "random weights, ZeRO-3: numbers drawn / needed", f"{size}.0", f"{drawn / once:.3f}"
    yield "index", f"{listing / 1e6:,.1f} MB", f"{files[INDEX].bytes / 1e6:,.3f} MB"
    yield "pieces that a rank holds as objects", f"{len(found.pieces.columns['start']):,}", "0"
    yield "metadata of a save on rank 0, in a thread: CPU time", "-", f"{seconds:.2f} s"
    yield "object collectives in a step during a save", "1", "0"
    other = size * 3 // 4
    for ranks in (size, other):
        if ranks == other:
            found = measures.opened(measures.checkpoint(folder / "other", network, other))
        counts = measures.of_all(
            found.path, size, lambda rank, f=found: measures.resume(network, f, 3, rank, size)
        )
        now = f"{counts.bytes / state:.3f}"
        yield f"resume from {ranks} ranks, ZeRO-3: bytes / state", f"{before.resume():.2f}", now
        now = f"{counts.opens / size:,.1f}"
        yield "the same: files opened by a rank", f"{before.opened() / size:,.0f}", now


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


def table(cases: dict[str, list[int]]) -> Iterator[str]:
    """The lines of the table."""
    command = " ".join(["python tools/bench/scale.py", *sys.argv[1:]])
    yield f"`{command}`, {time.strftime('%Y-%m-%d')}, {platform.machine()} CPU:"
    for preset, sizes in cases.items():
        for size in sizes:
            yield from (
                "",
                f"**{preset} on {size:,} ranks**",
                "",
                "| | before | now |",
                "|---|---|---|",
            )
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                for row in rows(preset, size, Path(folder)):
                    yield f"| {' | '.join(row)} |"
            yield from ("", f"{time.process_time() - began:.0f} s of one core.")


def main() -> None:
    """Count and print, or write, the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the smallest case alone, as CI does")
    parser.add_argument("--only", metavar="MODEL:RANKS", help="one case, for example molmo_72b:64")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    cases = SMALL if arguments.small else CASES
    if arguments.only:
        preset, _, size = arguments.only.partition(":")
        cases = {preset: [int(size)]}
    lines = []
    for line in table(cases):
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        tables.write("scale", lines)


if __name__ == "__main__":
    main()
