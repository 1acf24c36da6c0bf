"""The video proof: make shards of mp4 files, train, examine on held-out scans with the best constant, draw a page.

    python examples/digits/video.py --out runs/digits-video [--steps 1000] [--ranks 2]

The same command continues where it was stopped; the result is in OUT/summary.json and OUT/sheet.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import films
import numpy as np
from numpy.random import RandomState
from PIL import Image
from tqdm import tqdm

from molmo_ds import settings
from molmo_ds.config import home
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.point_text import read_tracks
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.show.film import contact_sheet
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.infer import load
from molmo_ds.infer.generate import Options

HERE = Path(__file__).parent
RECIPE = HERE / "video.yaml"
COUNTS = {"films": 3000, "examination": 200}
KINDS = ("leaves first", "appears at", "track")
NEAR = 12.5  # percent of the side by which a tracked point may be off
# what one word of the tokenizer may span: a time, a coordinate, a digit, a word or a tag with the space before it
PIECES = r" ?\d\.\d ?| \d{3,4}| ?\d| ?[A-Za-z_]+:?|<[a-z]+ coords=\"|\">|</[a-z]+>|[^A-Za-z\d]"


def main(arguments: list[str] | None = None) -> None:
    """Do every part that is not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=home, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--films", type=int, default=COUNTS["films"], help="to train on")
    parser.add_argument("--questions", type=int, default=COUNTS["examination"], help="films asked")
    args = parser.parse_args(arguments)
    out = Path(args.out)
    make_shards(out, {"films": args.films, "examination": args.questions})
    make_tokenizer(out)
    train(out, args.steps, args.ranks)
    found = examine(out)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def make_shards(out: Path, counts: dict[str, int]) -> None:
    """Shards of mp4 files that are trained on, and of held-out ones."""
    for stage, count in counts.items():
        if not (out / stage / ".nv-meta").exists():
            split = "heldout" if stage == "examination" else "train"
            made = tqdm(films.records(split, stage, count), total=count, desc=stage)
            write_shards(made, out / stage, "films")


def make_tokenizer(out: Path) -> None:
    """A byte-level tokenizer of what the first films say, and of the times of frames."""
    folder = out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return
    config = settings.load(RECIPE)
    formatter = PromptFormatter(config.data.prompts)
    shards = ShardSet(str(out / "films"))
    texts = [f" {time:.1f} " for time in np.arange(0, 3.0, 0.5)] * 100
    for number in range(min(500, len(shards))):
        about = shards.record(number)["annotations"]
        talks = formatter.conversations(about, RandomState(number), (films.SIDE, films.SIDE))
        texts += [message for talk in talks for message in talk.messages]
    train_tokenizer(texts, config.model.text.vocab_size, folder, PIECES)


def train(out: Path, steps: int, ranks: int) -> None:
    """Train with the deepspeed launcher, or go on."""
    run = out / "run"
    if (run / "DONE").exists():
        return
    words = [f"out={run}", f"data.tokenizer={out / 'tokenizer'}", f"max_steps={steps}"]
    words += [f"data.sources.films.path={out / 'films'}"]
    words += [
        f"optim.{part}.warmup_steps={min(60, steps)}" for part in ("connector", "vision", "text")
    ]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    subprocess.run([*launcher, "--module", "molmo_ds.train", str(RECIPE), *words], check=True)


def examine(out: Path) -> dict[str, dict[str, float]]:
    """Share of right answers of each kind, with that of the best answer that is always the same."""
    answerer = load.load(out / "run")
    shards = ShardSet(str(out / "examination"))
    right: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wanted: dict[str, list[str]] = {kind: [] for kind in KINDS}
    sheet = []
    for number in tqdm(range(len(shards)), desc="examine"):
        record = shards.read(number)
        seen = answerer.builder.see_video(record)
        prompts = [answerer.builder.prompt(seen, one) for one in record["annotations"]]
        replies, _ = answerer.answer(prompts, Options(max_new_tokens=96))
        for kind, reply, asked in zip(KINDS, replies, record["annotations"]):
            right[kind].append(score(reply, asked))
            wanted[kind].append(asked.get("answer") or json.dumps(asked["tracks"]))
        if number < 8:
            sheet.append(strip(answerer.builder.frames(record), replies[-1]))
    Image.fromarray(np.concatenate(sheet)).save(out / "sheet.png")
    return {
        kind: {
            "right": float(np.mean(right[kind])),
            "best constant": best_constant(wanted[kind]),
            "asked": len(right[kind]),
        }
        for kind in KINDS
    }


def score(reply: str, asked: dict) -> float:
    """1 for the right answer; of tracks the share of moments that are right, one too many counting as wrong."""
    if "answer" in asked:
        return float(reply.strip() == asked["answer"])
    found = {moment.time: list(moment.points.values()) for moment in read_tracks(reply, 100, 100)}
    true = {moment["time"]: moment["points"]["digit"] for moment in asked["tracks"]}
    hits = sum(
        len(found.get(time, ())) == 1
        and float(np.abs(np.subtract(found[time][0], at)).max()) <= NEAR
        for time, at in true.items()
    )
    return hits / len(set(found) | set(true))


def best_constant(wanted: list[str]) -> float:
    """Score of the answer that does best when it is always given; tracks are compared as they are scored."""
    if not wanted[0].startswith("["):
        return max(Counter(wanted).values()) / len(wanted)
    tracks = [json.loads(text) for text in wanted]
    best = 0.0
    for guess in tracks[:50]:
        at = {moment["time"]: moment["points"]["digit"] for moment in guess}
        scores = []
        for track in tracks:
            true = {moment["time"]: moment["points"]["digit"] for moment in track}
            hits = sum(
                time in at and float(np.abs(np.subtract(at[time], where)).max()) <= NEAR
                for time, where in true.items()
            )
            scores.append(hits / len(set(at) | set(true)))
        best = max(best, float(np.mean(scores)))
    return best


def strip(frames: list[np.ndarray], reply: str) -> np.ndarray:
    """The frames with their times and the points that the model gave."""
    moments = {moment.time: moment.points for moment in read_tracks(reply, 1, 1)}
    times = [number * films.STEP for number in range(len(frames))]
    marks = [[(name, x, y) for name, (x, y) in moments.get(time, {}).items()] for time in times]
    return contact_sheet(frames, times, marks)


if __name__ == "__main__":
    main()
