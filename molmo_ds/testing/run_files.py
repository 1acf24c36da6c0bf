"""A tiny run's files: pictures in shards, a tokenizer, and the overrides that make a run of a micro model of them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.tokens import train_tokenizer

MODEL = [
    "model.text.vocab_size=288",
    "model.text.embedding_size=288",
    "model.text.additional_vocab_size=8",
    "model.text.hidden_size=32",
    "model.text.intermediate_size=48",
    "model.text.num_hidden_layers=2",
    "model.text.num_attention_heads=4",
    "model.text.num_key_value_heads=2",
    "model.vision.image_size=28",
    "model.vision.patch_size=7",
    "model.vision.hidden_size=16",
    "model.vision.intermediate_size=32",
    "model.vision.num_hidden_layers=2",
    "model.vision.num_attention_heads=2",
    "model.images.overlap_margins=[0,0]",
]


def records(count: int = 40) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Little pictures with a caption or two questions; every fifth sample is text only."""
    random = np.random.RandomState(7)
    for i in range(count):
        shade = int(random.randint(0, 256))
        annotations = [
            {
                "style": "vqa2",
                "question": "how bright is it?",
                "answer": f"about {shade // 32 * 32}",
            }
        ]
        if i % 2:
            annotations.append(
                {"style": "long_caption", "text": f"A grey square of shade {shade}." * (1 + i % 3)}
            )
        parts = {}
        if i % 5:
            stream = io.BytesIO()
            noise = random.randint(0, 20, (30, 40, 3))
            Image.fromarray((noise + shade).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
            parts["png"] = stream.getvalue()
        record = {"images": list(parts), "annotations": annotations}
        yield f"{i:06d}", {**parts, "json": json.dumps(record).encode()}


def make(folder: Path) -> list[str]:
    """Write shards and tokenizer below `folder`; the overrides of a run that uses them (all but `out`)."""
    write_shards(records(), folder / "shards", samples_per_shard=20)
    train_tokenizer(
        ["how bright is it? about 32", "A grey square of shade 200."], 288, folder / "tokenizer"
    )
    return [
        *MODEL,
        f"data.sources.grey.path={folder / 'shards'}",
        f"data.tokenizer={folder / 'tokenizer'}",
        "data.sequence_length=160",
        "data.crops_per_sequence=6",
        "data.pool_size=8",
        "data.num_workers=0",
        "global_batch=4",
        "micro_batch=1",
        "max_steps=4",
        "log_interval=1",
        "save_interval=2",
        "optim.connector.warmup_steps=2",
        "optim.vision.warmup_steps=2",
        "optim.text.warmup_steps=2",
        "optim.text.lr=1e-3",
        "strategy=ds_configs/zero3.json",
    ]
