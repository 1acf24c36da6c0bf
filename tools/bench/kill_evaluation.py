"""Kill an evaluation again and again with SIGKILL, and compare what it finds with one that was left alone.

    python tools/bench/kill_evaluation.py FOLDER --kills 20

FOLDER receives random weights, questions, and the results of both. A kill comes after some more replies, or, one in
four, a while after the start: while weights are read, or results are written.
"""

import argparse
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from molmo_ds import settings
from molmo_ds.data.read.writer import write_shards
from molmo_ds.testing import run_files
from molmo_ds.testing.random_weights import initial_folder

PICTURES = 24
EACH = 5  # questions
MOST_MORE = 8  # replies until the next kill
LONGEST = 12.0  # seconds until a kill by the clock
TOOL = Path(__file__).parents[1] / "evaluate.py"


def records() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A record for each question."""
    for number in range(PICTURES):
        noise = np.random.RandomState(number).randint(0, 256, (30, 40 + number, 3)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "PNG")
        for question in range(EACH):
            asked = {
                "style": "text_vqa",
                "question": f"What is {question}?",
                "answers": ["red"] * 10,
            }
            known = {"image_id": f"picture {number}", "example_id": f"{number}.{question}"}
            record = {"images": ["png"], "annotations": [asked], "metadata": known}
            name = f"{number:03d}-{question}"
            yield name, {"png": stream.getvalue(), "json": json.dumps(record).encode()}


def make(folder: Path) -> None:
    """Questions, and random weights that answer them in many ways."""
    write_shards(records(), folder / "data/text_vqa-validation", samples_per_shard=40)
    wide = [f"model.{part}.initializer_range=0.3" for part in ("text", "vision", "connector")]
    given = [*run_files.make(folder / "run"), *wide, f"out={folder / 'none'}"]
    initial_folder(folder / "model", settings.load(overrides=given).model, folder / "run/tokenizer")


def command(folder: Path, results: str) -> list[str]:
    """An evaluation of the folder's model."""
    words = [sys.executable, str(TOOL), str(folder / "model"), "text_vqa", "--batch", "4"]
    return [*words, "--data", str(folder / "data"), "--save-dir", str(folder / results)]


def rows(folder: Path) -> Counter[str]:
    """How often each question is in the log."""
    found: Counter[str] = Counter()
    for file in folder.glob("*/log/*.jsonl"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            found[json.loads(line)["id"]] += 1
    return found


def kill_once(folder: Path, draw: random.Random) -> str:
    """Start, kill, and say when; "" where it had ended before."""
    before = len(rows(folder / "killed"))
    wanted = before + draw.randint(1, MOST_MORE)
    end = time.monotonic() + (draw.uniform(0, LONGEST) if draw.random() < 0.25 else 600)
    with open(folder / "killed.txt", "a") as out:
        child = subprocess.Popen(command(folder, "killed"), stdout=out, stderr=out)
    while child.poll() is None and time.monotonic() < end and len(rows(folder / "killed")) < wanted:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    return f"{before} -> {len(rows(folder / 'killed'))}" if child.wait() == -signal.SIGKILL else ""


def main() -> None:
    """Make, kill, finish, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    make(given.folder)
    subprocess.run(command(given.folder, "alone"), check=True, capture_output=True)
    draw = random.Random(given.seed)
    kills = [kill_once(given.folder, draw) for _ in range(given.kills)]
    print("rows in the log before and after each kill:", "; ".join(filter(None, kills)))
    subprocess.run(command(given.folder, "killed"), check=True, capture_output=True)
    asked = rows(given.folder / "killed")
    print(f"{len(asked)} questions, at most {max(asked.values())} times in the log;", end=" ")
    for name in ("rows.jsonl", "predictions.json"):
        [one] = given.folder.glob(f"alone/*/{name}")
        [other] = given.folder.glob(f"killed/*/{name}")
        print(name, "equal" if one.read_bytes() == other.read_bytes() else "NOT EQUAL", end="; ")
    figures = [
        json.loads(next(given.folder.glob(f"{name}/*/metrics.json")).read_text())["figures"]
        for name in ("alone", "killed")
    ]
    print("figures", "equal" if figures[0] == figures[1] else "NOT EQUAL")


if __name__ == "__main__":
    main()
