"""Counts what data costs at a thousand ranks: the real reader over a made-up index with nothing behind it.

`python tools/bench/scale_data.py` prints the table; `--tree FOLDER` measures another checkout beside this one. The
store "counted://" gives one index, one sidecar and one tar for every name, and counts who asks for what.
"""

import argparse
import functools
import io
import json
import mmap
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 10_000  # in each tar
PICTURE = 186_000  # bytes, a photograph's
KINDS = ("index", "size", "sidecar", "range", "listing")
STEPS = 50
Row = tuple[str, str, str, str, str]  # what, setting, before, after, bound


@dataclass(frozen=True)
class Setting:
    """One rank of a made-up run."""

    shards: int
    sources: int = 1
    ranks: int = 1024
    lanes: int = 4  # of each rank
    progress: float = 0.0  # share of an epoch that is behind it

    def __str__(self) -> str:
        text = f"{self.shards:,} tars, {self.shards * SAMPLES:.0e} samples, {self.ranks:,} ranks"
        text += f", {self.sources} sources" if self.sources > 1 else ""
        return text + (f", {self.progress:.0%} of an epoch done" if self.progress else "")


WHOLE = Setting(100_000)
SETTINGS = (
    WHOLE,
    *(Setting(100_000, ranks=ranks) for ranks in (64, 256, 512)),
    Setting(100_000, progress=0.9),
    Setting(100_000, sources=30),
)
SMALL = (Setting(1_000), Setting(1_000, sources=30))  # what CI can do


class Counted(fsspec.AbstractFileSystem):
    """A store in which every folder `counted://N-name` holds the index of N equal tars."""

    protocol = "counted"
    # shared with the workers, which are forked
    counts = np.frombuffer(mmap.mmap(-1, 8 * len(KINDS)), np.int64)

    def count(self, kind: str) -> None:
        """One more request."""
        Counted.counts[KINDS.index(kind)] += 1

    def size(self, path: str) -> int:
        """Of a tar."""
        self.count("size")
        return len(block()) * SAMPLES + 1024

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The index, a sidecar, or a range of a tar."""
        if path.endswith("molmo_ds.json"):
            self.count("index")
            return index(int(path.partition("://")[2].partition("-")[0]))
        if path.endswith(".parquet"):
            self.count("sidecar")
            return sidecar()
        self.count("range")
        first = start // len(block())
        data = block() * (-(-end // len(block())) - first)
        return data[start - first * len(block()) : end - first * len(block())]


@functools.cache
def parts() -> dict[str, bytes]:
    """The members of every sample, as they follow in the tar."""
    from molmo_ds.testing.streams import picture

    note = {"style": "vqa2", "question": "which?", "answer": "word " * 12}
    record = {"images": ["jpg"], "annotations": [note]}
    # what follows the picture's end is not decoded
    return {"jpg": picture(1).ljust(PICTURE, b"\0"), "json": json.dumps(record).encode()}


@functools.cache
def block() -> bytes:
    """One sample of a tar."""
    from molmo_ds.data.read.writer import BLOCK, header

    pieces = []
    for name, data in parts().items():
        pieces += [header(f"s.{name}", len(data)), data, bytes(-len(data) % BLOCK)]
    return b"".join(pieces)


@functools.cache
def sidecar() -> bytes:
    """The index of one tar."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from molmo_ds.data.read.writer import BLOCK, SIDECAR, digest

    lengths = [len(data) for data in parts().values()]
    places = [BLOCK, 2 * BLOCK + lengths[0] + -lengths[0] % BLOCK]
    hashed = digest(parts().values())
    rows = [
        {
            "key": f"s{number:05d}",
            "part_names": list(parts()),
            "part_offsets": [place + number * len(block()) for place in places],
            "part_lengths": lengths,
            "widths": [24],
            "heights": [16],
            "orientations": [1],
            "durations": [0.0],
            "sha256": hashed,
            "text_length": 60,
        }
        for number in range(SAMPLES)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SIDECAR), buffer, compression="zstd")
    return buffer.getvalue()


@functools.cache
def index(shards: int) -> bytes:
    """A folder's list of tars, as write_meta writes it."""
    import hashlib

    entry = {
        "samples": SAMPLES,
        "bytes": len(block()) * SAMPLES + 1024,
        "sidecar_sha256": hashlib.sha256(sidecar()).hexdigest(),
    }
    listed = {f"shard-{number:06d}.tar": entry for number in range(shards)}
    return json.dumps({"version": 1, "shards": listed}, indent=1).encode()


def memory(pid: int | str = "self", name: str = "Pss") -> int:
    """Bytes of a process: "Pss" shares what forked processes share, "Private_Dirty" is its alone."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/smaps_rollup does not say {name}.")


def peak(pid: int) -> int:
    """The most bytes that a process ever had, shared ones included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/status does not say VmHWM.")


def measure(setting: Setting) -> dict[str, float]:
    """Open the sources, make STEPS steps of rank 0 in this process, and then one in a worker of its own."""
    from molmo_ds.data.order.loader import Mixture, Steps, rank_lanes, sequences
    from molmo_ds.testing.streams import FakeBuilder, run_config

    fsspec.register_implementation("counted", Counted, clobber=True)
    each = setting.shards // setting.sources
    places = {f"s{i:02d}": f"counted://{each}-{i:02d}" for i in range(setting.sources)}
    index(each)
    config = run_config(places, global_batch=setting.ranks * setting.lanes, micro_batch=1)
    empty = memory()
    began = time.process_time()
    mixture = Mixture.open(config, FakeBuilder())
    if hasattr(mixture, "check"):  # it came with the deal over ranks
        mixture.check(0, setting.ranks)
    opened = time.process_time() - began
    start = dict(zip(KINDS, Counted.counts.tolist()))
    lanes = rank_lanes(config, 0, setting.ranks)
    states = progressed(mixture, lanes, setting.progress)
    found = {f"{kind} requests of a rank at start": float(n) for kind, n in start.items()}
    worker = with_worker(config, mixture, lanes, states)
    stream = Steps(config, sequences(config, mixture, lanes, states), lanes)
    Counted.counts[:] = 0
    began = time.process_time()
    _, after = next(stream)
    first = time.process_time() - began
    for _ in range(STEPS - 1):
        _, after = next(stream)
    asked = Counted.counts.sum() / (STEPS * setting.lanes)
    return found | {
        "CPU seconds to open": opened,
        "CPU seconds to the first batch": opened + first,
        "memory of a worker, at its peak": worker,
        "growth of a process that does all of it": memory() - empty,
        "requests per sequence": asked,
        "state of a lane": max(len(json.dumps(state)) for state in after.values()),
    }


def progressed(mixture: Any, lanes: range, share: float) -> dict[int, dict[str, Any]]:
    """States of lanes that have `share` of an epoch behind them, with an empty pool."""
    if not share:
        return {}
    states = {}
    for lane in lanes:
        places = [[0, int(order.length(lane, 0) * share)] for order in mixture.orders]
        draws = sum(position for _, position in places)
        state = {"draws": draws, "places": places, "pool": [], "seen": draws, "bad": 0}
        states[lane] = state | {"stamp": mixture.stamp}
    return states


def with_worker(config: Any, mixture: Any, lanes: range, states: dict[int, Any]) -> int:
    """Most bytes that a forked worker has for itself until it has made its first sequences."""
    import multiprocessing
    from dataclasses import replace

    from molmo_ds.data.order.loader import sequences

    config = replace(config, data=replace(config.data, num_workers=1))
    stream = sequences(config, mixture, lanes, states)
    for _ in lanes:
        next(stream)
    [worker] = multiprocessing.active_children()
    # what it has now, and had at its peak
    rollup = {name: memory(worker.pid, name) for name in ("Rss", "Private_Dirty")}
    used = peak(worker.pid) - rollup["Rss"] + rollup["Private_Dirty"]
    stream.close()
    return used


def measured(setting: Setting, tree: Path = ROOT) -> dict[str, float]:
    """`measure` in a process of its own with the code of `tree`."""
    words = [sys.executable, __file__, "--measure", json.dumps(vars(setting))]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def rows(settings: tuple[Setting, ...] = SETTINGS, before: Path | None = None) -> list[Row]:
    """What, setting, before, after and the bound; without a checkout of before its column is empty."""
    table = []
    for setting in settings:
        now = measured(setting)
        then = measured(setting, before) if before else {}
        bounds = {
            "size requests of a rank at start": setting.shards / setting.ranks + setting.sources,
            "memory of a worker, at its peak": 150 << 20,
        }
        for what, value in now.items():
            was = shown(what, then[what]) if then else ""
            bound = f"<= {shown(what, bounds[what])}" if what in bounds else ""
            table.append((what, str(setting), was, shown(what, value), bound))
    return table


def shown(what: str, value: float) -> str:
    """A figure with its unit."""
    if "memory" in what or "growth" in what:
        return f"{value / 2**20:.0f} MiB"
    if "state" in what:
        return f"{value:,.0f} bytes"
    return f"{value:.1f} s" if "seconds" in what else f"{value:,.4g}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, help="a checkout whose figures are the column before")
    parser.add_argument("--small", action="store_true", help="1,000 tars, as CI does")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Setting(**json.loads(args.measure)))))
        return
    print("| what | setting | before | after | bound |\n|---|---|---|---|---|")
    for row in rows(SMALL if args.small else SETTINGS, args.tree and args.tree.resolve()):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
