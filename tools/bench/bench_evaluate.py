"""Measures an evaluation: questions per CPU-second with several questions a picture, and 100,000 made-up rows.

    python tools/bench/bench_evaluate.py speed --checkpoint RUN/questions --pictures RUN/data/examination
    python tools/bench/bench_evaluate.py speed --scratch RUN/tokenizer --count 16
    python tools/bench/bench_evaluate.py rows

`speed` asks the same questions of the same weights in three ways: `molmo-ds evaluate` (log, scores and all), batches of
`generate` in which every question brings its picture, as it was until 2026-11, and the exported folder under
transformers. The ways take turns; CPU seconds are those of this process, all threads (time.process_time), of the best
round of each.
`rows` scores, writes and pages the rows of a model that is made up, and prints wall seconds, CPU seconds and the
largest memory.
"""

import argparse
import io
import itertools
import json
import logging
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image

from molmo_ds import settings
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine import launch
from molmo_ds.eval import page, results
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.clients.client import Ask, Reply
from molmo_ds.eval.clients.own_client import OwnClient
from molmo_ds.eval.provenance import Provenance
from molmo_ds.eval.row import Row
from molmo_ds.eval.run import Job, evaluate
from molmo_ds.files import local
from molmo_ds.infer.generate import Options
from molmo_ds.infer.load import Answerer, load
from molmo_ds.testing import tables
from molmo_ds.testing.random_weights import initial_folder

QUESTIONS = (
    "Which digit is at the top left?",
    "Which digit is at the top right?",
    "Which digit is at the bottom left?",
    "Which digit is at the bottom right?",
    "Which digit is largest?",
)
TASK = BENCHMARKS["short_answers"]
LIMIT = 1000  # megabytes, of --rows
BEFORE = 64  # questions at once until 2026-11


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "rows"])
    parser.add_argument(
        "--checkpoint", type=local, help="of speed: a run's folder or a folder of weights"
    )
    parser.add_argument(
        "--scratch",
        type=local,
        metavar="TOKENIZER",
        help="of speed: random weights, larger pictures",
    )
    parser.add_argument(
        "--pictures", type=local, help="shards whose pictures are asked about; default: noise"
    )
    parser.add_argument(
        "--count", type=int, default=64, help="pictures of speed, each with five questions"
    )
    parser.add_argument("--batch", type=int, help="questions at once, ours; default: its own")
    parser.add_argument(
        "--other-batch", type=int, default=8, help="questions at once, transformers"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each way; the best counts")
    parser.add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "rows":
            rows(Path(folder), given.rows)
        elif given.checkpoint is None and given.scratch is None:
            parser.error("speed needs --checkpoint or --scratch")
        else:
            given.checkpoint = given.checkpoint or scratch(Path(folder), given.scratch)
            speed(Path(folder), given)


def speed(folder: Path, given: argparse.Namespace) -> None:
    """Print questions per CPU-second of the three ways."""
    torch.set_num_threads(1)
    write_shards(records(itertools.islice(pictures(given.pictures), given.count)), folder / "data")
    job = job_of(folder)
    answerer = load(given.checkpoint, device="cpu")
    client = OwnClient.of(answerer, given.batch)
    asked = job.rows()
    ways = {
        "molmo-ds evaluate": lambda: evaluated(job, client),
        f"batches of generate, {BEFORE}": lambda: in_batches(job, answerer, asked, BEFORE),
    }
    ways[f"exported, transformers, {given.other_batch}"] = exported(
        job, given, folder / "export", asked
    )
    print(
        f"{len(asked)} questions about {given.count} pictures, {tables.cpu()}, torch {torch.__version__}, one thread"
    )
    runs: dict[str, list[tuple[float, list[str]]]] = {name: [] for name in ways}
    for _ in range(given.rounds):  # in turn, since a machine is not the same at all times
        for name, way in ways.items():
            runs[name].append(timed(way))
    best = {name: min(seconds for seconds, _ in found) for name, found in runs.items()}
    first = next(iter(ways))
    wanted = runs[first][0][1]
    for name, found in runs.items():
        equal = sum(a == b for a, b in zip(wanted, found[0][1]))
        share = best[name] / best[first]
        print(
            f"{name:32} {len(asked) / best[name]:8.1f} questions per CPU-second, 1 / {share:.2f} of the first,"
            f" {equal} of {len(asked)} replies equal"
        )


def scratch(folder: Path, tokenizer: Path) -> Path:
    """Random weights of the preset tiny with 36 tokens a crop: 7 crops and 274 tokens of a picture of 504 x 336."""
    shape = [
        "model.vision.image_size=168",
        "model.images.max_crops=6",
        "model.images.overlap_margins=[0,0]",
    ]
    crop = ["model.images.crop_mode=overlap-and-resize-c2"]
    config = settings.load(overrides=["preset=tiny", *shape, *crop, f"out={folder / 'none'}"])
    return initial_folder(folder / "scratch", config.model, tokenizer)


def timed(way: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """(CPU seconds, what it returned)."""
    began = time.process_time()
    replies = way()
    return time.process_time() - began, replies


def evaluated(job: Job, client: OwnClient) -> list[str]:
    """The replies of an evaluation, in the order of the rows."""
    outcome = evaluate(job, client, launch.alone(), overwrite=True)
    return [row["reply"] for row in outcome.rows]


def in_batches(job: Job, answerer: Answerer, asked: Sequence[Row], batch: int) -> list[str]:
    """Every question with its picture in a row of its own, as molmo_ds/eval/run.py did until 2026-11."""
    replies: list[str] = []
    for start in range(0, len(asked), batch):
        prompts = [
            answerer.builder.prompt(
                job.shards.read(row.index)["pixels"], row.question(), rng=RandomState(row.index)
            )
            for row in asked[start : start + batch]
        ]
        texts, _ = answerer.answer(prompts, Options(max_new_tokens=TASK.max_new_tokens))
        replies += texts
    return replies


def exported(
    job: Job, given: argparse.Namespace, folder: Path, asked: Sequence[Row]
) -> Callable[[], list[str]]:
    """The same questions of the exported folder under transformers, as a user would ask them."""
    from transformers import AutoModelForCausalLM, AutoProcessor

    from molmo_ds.hub.export import to_hub

    to_hub(given.checkpoint, folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    def way() -> list[str]:
        replies = []
        for start in range(0, len(asked), given.other_batch):
            chunk = asked[start : start + given.other_batch]
            shown = [
                [Image.open(io.BytesIO(data)) for data in job.shards.read(row.index)["pixels"]]
                for row in chunk
            ]
            texts = [f"vqa2: {row.annotation['question']}" for row in chunk]
            inputs = processor(text=texts, images=shown, return_tensors="pt")
            with torch.no_grad():
                output = model.generate(
                    **inputs, max_new_tokens=TASK.max_new_tokens, do_sample=False
                )
            new = output[:, inputs["input_ids"].shape[1] :]
            replies += [processor.decode(ids).strip() for ids in new]
        return replies

    return way


class MadeUp:
    """A model that answers one of ten words at once."""

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See Client."""
        for number, ask in enumerate(asks):
            yield Reply(
                id=ask.id,
                text=str(number % 10),
                token_count=1,
                end="stop",
                prompt=ask.annotation["question"],
            )


def rows(folder: Path, count: int) -> None:
    """Evaluate, score, write and page that many questions; print seconds and memory."""
    each = len(QUESTIONS)
    write_shards(
        records(itertools.islice(itertools.cycle(noise(100)), count // each)),
        folder / "data",
        10_000,
    )
    job = job_of(folder)
    busy = time.process_time()
    began = time.perf_counter()
    outcome = evaluate(job, MadeUp(), launch.alone())
    asked = time.perf_counter()
    results.write(job, outcome, {}, {})
    written = time.perf_counter()
    text = page.render(job, outcome)
    ended = time.perf_counter()
    busy = time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(outcome.rows):,} rows, {tables.cpu()}: {ended - began:.1f} s ({busy:.1f} CPU-s)",
        end=", ",
    )
    print(f"at most {memory:,.0f} MB (asked: {LIMIT})")
    print(
        f"read, asked, logged and scored {asked - began:.1f} s, written {written - asked:.1f} s,",
        end=" ",
    )
    print(f"page of {len(text) / 1e6:.1f} MB {ended - written:.1f} s")


def job_of(folder: Path) -> Job:
    """An evaluation of `folder`/data."""
    values = dict.fromkeys(("checkpoint", "prompt", "precision", "data", "code"), "bench")
    values |= dict.fromkeys(("crops", "frames", "limit", "shuffle_seed"))
    known = Provenance(task=TASK.name, split="bench", new_tokens=TASK.max_new_tokens, **values)
    shards = ShardSet(str(folder / "data"))
    return Job(
        task=TASK, split="bench", shards=shards, results=folder / "results", provenance=known
    )


def records(shown: Iterable[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A record for each question, as `download` writes them for evaluation."""
    for number, data in enumerate(shown):
        kind = Image.open(io.BytesIO(data)).format.lower()
        for place, question in enumerate(QUESTIONS):
            asked = {
                "style": "vqa2",
                "question": question,
                "answers": [str((number + place) % 10)] * 10,
            }
            known = {"image_id": number, "example_id": f"{number}-{place}"}
            record = {"images": [kind], "annotations": [asked], "metadata": known}
            yield f"{number:06d}-{place}", {kind: data, "json": json.dumps(record).encode()}


def pictures(folder: Path | None) -> Iterator[bytes]:
    """The first picture of every sample, or noise that makes 6 crops of 168 pixels."""
    if folder is None:
        yield from noise(1000, (504, 336))
        return
    shards = ShardSet(str(folder))
    for index in range(len(shards)):
        yield shards.read(index)["pixels"][0]


def noise(count: int, size: tuple[int, int] = (56, 56)) -> Iterator[bytes]:
    """PNGs of a width and height in pixels."""
    for seed in range(count):
        stream = io.BytesIO()
        Image.fromarray(
            RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        ).save(stream, "PNG")
        yield stream.getvalue()


if __name__ == "__main__":
    main()
