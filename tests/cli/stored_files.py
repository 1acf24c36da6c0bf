"""One of each file that commands read: weights, a run's folder, shards, pictures, rows, a tar, a hostfile."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

from molmo_ds import settings
from molmo_ds.hub import export
from molmo_ds.testing import run_files
from molmo_ds.testing.random_weights import random_state, weights_folder
from molmo_ds.testing.streams import picture

NAMES = (
    "weights", "exported", "words", "config", "run", "shards", "copy", "folder", "picture", "rows", "table",
    "tar", "hosts",
)  # fmt: skip
ENDS = {"config": "yaml", "picture": "jpg", "rows": "jsonl", "table": "csv", "tar": "tar"}


def small_world(root: Path) -> dict[str, Path]:
    """NAMES -> a file or a folder below `root` that the commands can use."""
    at = {name: root / name for name in NAMES} | {"root": root}
    at |= {name: root / f"{name}.{end}" for name, end in ENDS.items()}
    config = settings.load(None, run_files.make(root))
    (root / "tokenizer").rename(at["words"])
    weights_folder(at["weights"], config.model, random_state(config.model), at["words"])
    export.to_hub(at["weights"], at["exported"])
    shutil.copytree(at["shards"], at["copy"])
    at["picture"].write_bytes(picture(1))
    at["folder"].mkdir()
    for number in range(3):
        (at["folder"] / f"{number}.jpg").write_bytes(picture(number))
        (at["folder"] / f"{number}.txt").write_text("a boat")
    rows = [{"image": f"{number}.jpg", "caption": "a boat"} for number in range(3)]
    at["rows"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with at["table"].open("w") as file:
        table = csv.DictWriter(file, ["image", "caption"])
        table.writeheader()
        table.writerows(rows)
    with tarfile.open(at["tar"], "w") as tar:
        for path in sorted(at["folder"].iterdir()):
            tar.add(path, path.name)
    at["hosts"].write_text("one slots=2\ntwo slots=2\n")
    at["run"].mkdir()
    (at["run"] / "log.jsonl").write_text('{"step": 1, "time": 1.0, "loss": 2.0}\n')
    settings.save(config, at["config"])
    shutil.copy(at["config"], at["run"] / "config.yaml")
    return at
