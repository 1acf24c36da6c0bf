"""A tiny model and shards of questions for tests of the evaluation."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from molmo_ds import settings
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.eval.benchmarks.text_vqa import TASKS
from molmo_ds.eval.provenance import Provenance
from molmo_ds.eval.run import Job
from molmo_ds.testing import run_files
from molmo_ds.testing.random_weights import initial_folder

TASK = TASKS[0]
ANSWERS = ("red", "blue", "a long street")


def picture(shade: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of one shade with noise."""
    noise = np.random.RandomState(shade).randint(0, 40, (size[1], size[0], 3))
    stream = io.BytesIO()
    Image.fromarray((noise + shade).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def records(pictures: int = 6, each: int = 3) -> Iterator[tuple[str, dict[str, bytes]]]:
    """One record a question, as data sets are written for evaluation; some pictures are wider than others."""
    for number in range(pictures):
        shown = picture(20 * number, (40 + 30 * (number % 3), 30))
        for question in range(each):
            asked = {
                "style": "text_vqa",
                "question": f"What is number {question} here?" + " And now?" * (number % 2),
                "answers": [ANSWERS[(number + question) % 3]] * 10,
            }
            known = {
                "image_id": f"picture {number}",
                "example_id": f"{number}.{question}",
                "prompt": "not ours",
            }
            record = {"images": ["png"], "annotations": [asked], "metadata": known}
            yield f"{number:03d}-{question}", {"png": shown, "json": json.dumps(record).encode()}


def make(folder: Path, *overrides: str) -> Path:
    """`folder` with `data/text_vqa-validation` and the weights folder `model`, one crop a picture by default."""
    write_shards(records(), folder / "data/text_vqa-validation", samples_per_shard=7)
    wide = [f"model.{part}.initializer_range=0.3" for part in ("text", "vision", "connector")]
    config = settings.load(
        overrides=[*run_files.make(folder / "run"), *wide, *overrides, f"out={folder / 'none'}"]
    )
    initial_folder(folder / "model", config.model, folder / "run/tokenizer")
    return folder


def job(folder: Path, results: str, **changes: object) -> Job:
    """An evaluation of `folder`'s shards."""
    shards = ShardSet(str(folder / "data/text_vqa-validation"))
    values = {
        "task": TASK.name,
        "split": "validation",
        "checkpoint": "tiny",
        "prompt": "1",
        "crops": None,
        "frames": None,
        "precision": "fp32",
        "limit": None,
        "shuffle_seed": None,
        "data": shards.fingerprint,
        "new_tokens": 5,
        "code": "1",
        **changes,
    }
    return Job(
        task=TASK,
        split="validation",
        shards=shards,
        results=folder / results,
        provenance=Provenance(**values),
    )
