"""What the tests of the public data sets share: files as they are published, the tool, and its shards read back."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
from picture_server import picture

from molmo_ds.cli import download
from molmo_ds.config import PromptConfig
from molmo_ds.data import sources
from molmo_ds.data.decode import load_image
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.prompts import PromptFormatter

ROOT = Path(__file__).parents[2]
datasets.disable_progress_bars()


def run(tmp_path: Path, *argv: str) -> int:
    """The tool's exit status; nothing is left in the cache of the machine."""
    with patch.object(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache"):
        return download.main(list(argv))


class Hub:
    """Writes a data set's files as they are published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parquet(
        self, rows: list[dict[str, Any]], name: str = "data/train-00000-of-00001", image: str = ""
    ) -> None:
        table = datasets.Dataset.from_list(rows)
        if image:  # encoded bytes inside the parquet, as push_to_hub writes them
            table = table.cast_column(image, datasets.Image(decode=False)).cast_column(
                image, datasets.Image()
            )
        path = self.folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)

    def json(self, name: str, content: Any) -> None:
        self.file(name, json.dumps(content).encode())

    def file(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def shown(seed: int, kind: str = "JPEG") -> dict[str, Any]:
    return {"bytes": picture(seed, kind=kind), "path": f"{seed}.{kind.lower()}"}


def build(tmp_path: Path, name: str, *options: str, split: str = "train") -> list[dict]:
    """Run the tool on tmp_path/NAME and read its shards back."""
    argv = [name, "--from", str(tmp_path), "--out", str(tmp_path / "out"), "--split", split]
    assert run(tmp_path, *argv, "--attempts", "1", "--timeout", "5", *options) == 0
    return read(tmp_path / "out" / f"{sources.get(name).name}-{split}")


def read(folder: Path) -> list[dict]:
    shards = ShardSet(str(folder))
    records = [shards.read(i) for i in range(len(shards))]
    formatter = PromptFormatter(PromptConfig())
    for record in records:
        for pixels in record["pixels"]:
            load_image(pixels)
        if folder.name.endswith("-train"):  # what is written can be learnt
            size = record["sizes"][0] if record["sizes"] else None
            assert formatter.conversations(record["annotations"], np.random.RandomState(0), size)
    return records
