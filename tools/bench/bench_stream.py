"""The parts of tools/bench/bench_data.py that measure the stream: exactness, resume, packing, memory."""

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from molmo_ds import presets
from molmo_ds.architecture import ImageConfig
from molmo_ds.config import DataConfig, RunConfig, SourceConfig
from molmo_ds.data.order.checks import identical, replay
from molmo_ds.data.order.lanes import Lane
from molmo_ds.data.order.loader import Mixture, Sequence, Steps, rank_lanes, sequences
from molmo_ds.data.order.packing import choose
from molmo_ds.data.read.shards import ShardSet, chunk_bounds
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.tokens import train_tokenizer

Row = dict[str, str | float]
LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 3), (8, 1)]  # ranks x workers
SENTENCE = "the red house stands beside a small river where two people walk with their dog under grey clouds"
WORDS = SENTENCE.split()


def mixture(count: int, seed: int = 0) -> list[list[int]]:
    """[tokens, crops] of 40 % captions, 40 % questions, 20 % text; about 1080 tokens and 8.2 crops on average."""
    draw, out = np.random.RandomState(seed), []
    for kind in draw.choice(3, count, p=(0.4, 0.4, 0.2)):
        crops = int(draw.choice([7, 9, 10, 13], p=(0.25, 0.15, 0.2, 0.4)))
        words = (draw.normal(250, 60), 8 + draw.exponential(30), draw.lognormal(5.9, 0.8))[kind]
        words = int(np.clip(words, 5, 1900))
        out.append([words + 103 * crops, crops] if kind < 2 else [words, 0])
    return out


def pack_all(sizes: list[list[int]], length: int, slots: int, pool_size: int = 48) -> Row:
    """Fill, longest wait (samples drawn while one waits) and cost of packing all sizes with a pool."""
    pool, drawn, tokens, crops, packs, wait, seconds = [], 0, 0, 0, 0, 0, 0.0
    while drawn < len(sizes):
        while len(pool) < pool_size and drawn < len(sizes):
            pool.append((drawn, sizes[drawn]))
            drawn += 1
        start = time.process_time()
        chosen = choose([size for _, size in pool], length, slots)
        seconds += time.process_time() - start
        taken = set(chosen)
        wait = max(wait, *(drawn - pool[i][0] for i in chosen))
        tokens += sum(pool[i][1][0] for i in chosen)
        crops += sum(pool[i][1][1] for i in chosen)
        pool, packs = [entry for i, entry in enumerate(pool) if i not in taken], packs + 1
    done = len(sizes) - len(pool)
    return {
        "length": length,
        "crop slots": slots,
        "token fill": tokens / packs / length,
        "crop fill": crops / packs / slots,
        "oldest wait": wait,
        "us per sample": seconds / done * 1e6,
    }


def bench_packing(rounds: int) -> list[Row]:
    """Packing at the mixture of the facts, with crop slots matched to it (1.25 x) and short of that."""
    sizes = mixture(20_000)
    tokens, crops = np.mean(sizes, axis=0)
    rows = []
    for length in tqdm((2304, 4096, 16384), desc="packing", leave=False):
        for share in (1.0, 1.25):
            runs = [
                pack_all(sizes, length, max(13, round(share * length * crops / tokens)))
                for _ in range(max(1, rounds // 5))
            ]
            rows.append(min(runs, key=lambda row: row["us per sample"]))
    return rows


def records(
    count: int, pictures: list[bytes], words: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Captions and questions over a few pictures, one in five without a picture."""
    draw = np.random.RandomState(count)
    for i in range(count):
        answer = " ".join(draw.choice(WORDS, draw.randint(words // 2, words)))
        annotations: list[dict[str, Any]] = [{"style": "long_caption", "text": answer}]
        if i % 3 == 0:
            annotations = [
                {"style": "vqa2", "question": f"what is {k}?", "answer": answer[: 20 + i % 9]}
                for k in (1, 2)
            ]
        if i % 5 == 4:
            content = {
                "images": [],
                "annotations": [{"style": "text_sft", "messages": ["tell me", answer]}],
            }
            yield f"{i:06d}", {"json": json.dumps(content).encode()}
        else:
            content = {"images": ["jpg"], "annotations": annotations}
            yield (
                f"{i:06d}",
                {"jpg": pictures[i % len(pictures)], "json": json.dumps(content).encode()},
            )


def small_run(folder: Path, photos: list[bytes]) -> RunConfig:
    """Two sources of small pictures for the tiny model with overlapping crops."""
    train_tokenizer([SENTENCE] * 3, 320, folder / "tokenizer")
    sources = {}
    for name, count in (("captions", 150), ("questions", 70)):
        write_shards(records(count, photos, 30), folder / name, name, 40)
        sources[name] = SourceConfig(path=str(folder / name))
    data = DataConfig(
        sources=sources,
        tokenizer=str(folder / "tokenizer"),
        sequence_length=512,
        crops_per_sequence=16,
    )
    model = dataclasses.replace(
        presets.tiny(),
        vision=dataclasses.replace(presets.tiny().vision, patch_size=7),
        images=ImageConfig(max_crops=4, overlap_margins=(2, 2)),
    )
    return dataclasses.replace(RunConfig(), model=model, data=data, global_batch=8)


def bench_exactness(photos: list[bytes], stops: int = 20, length: int = 24) -> list[Row]:
    """Stops at random steps on random layouts, resumed on others, each compared with the uninterrupted stream."""
    draw, rows = np.random.RandomState(4), []
    with tempfile.TemporaryDirectory() as folder:
        config = small_run(Path(folder), photos)
        mixture = Mixture.open(config)
        whole, _ = replay(config, mixture, 1, 0, length)
        for number in tqdm(range(stops), desc="exactness", leave=False):
            first = LAYOUTS[number % len(LAYOUTS)]
            second = LAYOUTS[(number + int(draw.randint(1, len(LAYOUTS)))) % len(LAYOUTS)]
            stop = int(draw.randint(1, length))
            head, states = replay(config, mixture, *first, stop)
            states = {int(lane): state for lane, state in json.loads(json.dumps(states)).items()}
            tail, _ = replay(config, mixture, *second, length - stop, states, stop)
            batches = [batch for step in head + tail for batch in step]
            rows.append(
                {
                    "stop": stop,
                    "ranks x workers": "{}x{}".format(*first),
                    "resumed on": "{}x{}".format(*second),
                    "sequences": len(batches),
                    "documents": int(sum(b.document_ids.amax(1).sum() for b in batches)),
                    "megabytes of pixels": sum(b.images.numel() for b in batches) / 1e6,
                    "identical": str(identical(head + tail, whole)),
                }
            )
    return rows


class Virtual:
    """A data set that claims `samples` samples and reads those of a small one again and again."""

    def __init__(self, base: ShardSet, samples: int, lanes: int):
        self.base, self.samples = base, samples
        self.bounds = chunk_bounds(np.arange(0, samples + 1, 1000), samples * 190_000, lanes)
        self.fingerprint = base.fingerprint

    def __len__(self) -> int:
        return self.samples

    def serve(self, chunks: int, rows: int) -> None:
        self.base.serve(chunks, rows)

    def record(self, index: int) -> dict[str, Any]:
        return self.base.record(index % len(self.base))

    def read(self, index: int) -> dict[str, Any]:
        return self.base.read(index % len(self.base))


def large_run(folder: Path, photos: list[bytes], workers: int) -> RunConfig:
    """Molmo-7B's pictures: 1024x768, 12 crops and the global view, pool of 48."""
    train_tokenizer([SENTENCE] * 3, 320, folder / "tokenizer")
    write_shards(records(120, photos, 200), folder / "shards", "photos", 60)
    data = DataConfig(
        sources={"photos": SourceConfig(path=str(folder / "shards"))},
        tokenizer=str(folder / "tokenizer"),
        sequence_length=4096,
        crops_per_sequence=39,
        num_workers=workers,
    )
    return dataclasses.replace(RunConfig(), model=presets.molmo_7b_d(), data=data, global_batch=2)


def first_batch(
    config: RunConfig, virtual: Virtual, states: dict[int, dict[str, Any]] | None
) -> float:
    """Seconds from nothing but open shards to the first global batch, on one rank in this process."""
    start = time.perf_counter()
    opened, lanes = Mixture.open(config, sets={"photos": virtual}), rank_lanes(config, 0, 1)
    next(Steps(config, sequences(config, opened, lanes, states or {}), lanes))
    return time.perf_counter() - start


def bench_resume(photos: list[bytes], rounds: int) -> list[Row]:
    """The first batch of a new run compared with that of one resumed after 10 million of 12 million virtual samples."""
    with tempfile.TemporaryDirectory() as folder:
        config = large_run(Path(folder), photos, 0)
        virtual = Virtual(
            ShardSet(config.data.sources["photos"].path), 12_000_000, config.global_batch
        )
        mixture, states = Mixture.open(config, sets={"photos": virtual}), {}
        for number in range(config.global_batch):
            lane = Lane(number, mixture.orders, mixture.rates, mixture.size, mixture.budget)
            done = 10_000_000 // config.global_batch
            lane.load({"draws": done, "places": [[0, done]], "pool": [], "seen": done, "bad": 0})
            lane.next()  # fills the pool with the samples that lie there
            states[number] = lane.state() | {"stamp": mixture.stamp}
        cold, resumed = [], []
        for _ in tqdm(range(max(3, rounds // 2)), desc="resume", leave=False):
            cold.append(first_batch(config, virtual, None))
            resumed.append(first_batch(config, virtual, states))
    size = max(len(json.dumps(state)) for state in states.values())
    return [
        {
            "what": "cold start",
            "seconds to first batch": min(cold),
            "x cold": 1.0,
            "bytes of state per lane": 0,
        },
        {
            "what": "after 10 million samples",
            "seconds to first batch": min(resumed),
            "x cold": min(resumed) / min(cold),
            "bytes of state per lane": size,
        },
    ]


def bench_memory(photos: list[bytes]) -> list[Row]:
    """Resident memory of a data worker, measured in a fresh process that does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        large_run(Path(folder), photos, 1)
        code = f"import bench_stream; bench_stream.worker_memory({folder!r})"
        here = Path(__file__).parent  # where Python looks first
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def worker_memory(folder: str) -> None:
    """Print, as JSON, what serving a lane takes: pool of 48, 12 crops, prefetch_factor finished sequences kept."""
    bare = memory()
    data = DataConfig(
        sources={"photos": SourceConfig(path=f"{folder}/shards")},
        tokenizer=f"{folder}/tokenizer",
        sequence_length=4096,
        crops_per_sequence=39,
        num_workers=0,
    )
    config = dataclasses.replace(RunConfig(), model=presets.molmo_7b_d(), data=data, global_batch=1)
    stream = sequences(config, Mixture.open(config), rank_lanes(config, 0, 1), {})
    kept: deque[Sequence] = deque(maxlen=data.prefetch_factor)
    for _ in range(60):
        kept.append(next(stream))
    peak, held = (
        most_memory(),
        sum(t.nbytes for sequence in kept for t in sequence.row.tensors()) / 1e6,
    )
    rows = [
        {"what": "Python with the imports", "peak RSS MB": bare, "above it MB": 0.0},
        {"what": "serving a lane", "peak RSS MB": peak, "above it MB": peak - bare},
        {
            "what": f"  of which {len(kept)} finished sequences",
            "peak RSS MB": held,
            "above it MB": held,
        },
    ]
    print(json.dumps(rows))


def memory() -> float:
    """What this process holds in memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def most_memory() -> float:
    """The most that this process has held in memory, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
