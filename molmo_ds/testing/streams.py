"""Helpers of the tests of the stream: small shards of real JPEGs, a builder without tokenizer, faked orders."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from molmo_ds.batch import Sample, windows_of
from molmo_ds.config import DataConfig, RunConfig, SourceConfig
from molmo_ds.data.decode import load_image
from molmo_ds.data.read.writer import write_shards

SIDE = 8  # pixels of a fake crop


def picture(seed: int, width: int = 24, height: int = 16) -> bytes:
    pixels = np.random.RandomState(seed).randint(
        0, 255, (height // 8, width // 8, 3), dtype=np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def records(count: int, name: str = "s", first: int = 0) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every fifth is text only, every seventh has two pictures; the answers' lengths differ."""
    for i in range(first, first + count):
        names = [] if i % 5 == 0 else ["0.jpg", "1.jpg"] if i % 7 == 0 else ["jpg"]
        answer = "word " * (1 + (i * 7919) % 23)
        content = {
            "images": names,
            "annotations": [{"style": "vqa2", "question": f"which {i}?", "answer": answer}],
        }
        parts = {part: picture(97 * i + k, 24 + 8 * (i % 3)) for k, part in enumerate(names)}
        yield f"{name}{i:05d}", parts | {"json": json.dumps(content).encode()}


def make_shards(folder: Path, count: int, name: str = "s", samples_per_shard: int = 20) -> Path:
    write_shards(records(count, name), folder, name, samples_per_shard)
    return Path(folder)


class FakeBuilder:
    """Records to samples by arithmetic: a token per character, a crop per picture, drawn noise, real decoding."""

    fingerprint = "fake"

    def size(self, record: dict, rng: np.random.RandomState) -> tuple[int, int]:
        return len(self._text(record, rng)) + 4 * len(record["sizes"]), len(record["sizes"])

    def build(self, record: dict, rng: np.random.RandomState) -> Sample:
        crops = [
            torch.from_numpy(load_image(data)[:SIDE, :SIDE].copy()) for data in record["pixels"]
        ]
        n = len(crops)
        text = self._text(record, rng)
        ids = torch.tensor([1] * (4 * n) + [ord(c) for c in text], dtype=torch.int64)
        images = torch.stack(crops) if n else torch.zeros(0, SIDE, SIDE, 3, dtype=torch.uint8)
        positions = torch.arange(4 * n)
        positions[3::4] = -1
        length = len(ids)
        return Sample(
            input_ids=ids,
            labels=torch.roll(ids, -1),
            loss_weights=torch.rand(
                length, generator=torch.Generator().manual_seed(int(rng.randint(1 << 30)))
            ),
            position_ids=torch.arange(length),
            branch_ids=torch.ones(length, dtype=torch.int32),
            images=images,
            image_masks=torch.ones(n, 4),
            windows=windows_of(n, 2, 1),
            image_positions=positions,
        )

    def _text(self, record: dict, rng: np.random.RandomState) -> str:
        return record["__key__"] + record["annotations"][0]["answer"] + "!" * rng.randint(5)


def run_config(folders: dict[str, Path], **data: object) -> RunConfig:
    sources = {name: SourceConfig(path=str(folder)) for name, folder in folders.items()}
    settings = {
        "sequence_length": 256,
        "crops_per_sequence": 4,
        "pool_size": 12,
        "num_workers": 0,
        "seed": 3,
    }
    run = {key: data.pop(key) for key in ("global_batch", "micro_batch") if key in data}
    return dataclasses.replace(
        RunConfig(), data=DataConfig(sources=sources, **settings | data), **run
    )
