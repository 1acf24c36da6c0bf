"""Fine-tunes the quickstart's model to a question that it never heard, and shows its answers before and after.

    python examples/digits/finetune.py [--quickstart DIR] [--out DIR] [--steps N]

The question: is the picture a negative? Half of the pictures are. The data goes the way of anybody's own: pictures in a
folder and JSON lines, made shards by the command of docs/guides/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import compose
import numpy as np
from PIL import Image

from molmo_ds import settings, train
from molmo_ds.cli import make_shards
from molmo_ds.config import home
from molmo_ds.engine import launch
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.plan import Wish, plan
from molmo_ds.eval.run import evaluate
from molmo_ds.eval.subject import Checkpoint

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("negatives.yaml")
PICTURES = {"train": 400, "heldout": 120}
ASKED = 120  # held-out questions of each kind
TASK = BENCHMARKS["short_answers"]


def main(arguments: list[str] | None = None) -> None:
    """Make the data, ask, train, ask again; a user's mistake is one sentence and exit code 1."""
    try:
        report(run(read_arguments(arguments)))
    except (ValueError, OSError) as error:
        sys.exit(f"finetune: {error}")


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; ValueError where the quickstart is not there or the folder is taken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=home, default=str(ROOT / "runs/quickstart"))
    parser.add_argument("--out", type=home, default=str(ROOT / "runs/negatives"))
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    given = parser.parse_args(arguments)
    if not Path(given.quickstart, "questions/DONE").exists():
        raise ValueError(
            f"{given.quickstart} is no finished quickstart; run bash examples/quickstart.sh, or say --quickstart."
        )
    if Path(given.out).exists():
        raise ValueError(f"{given.out} is there already; delete it or name another with --out.")
    return given


def run(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The scores of each question before and after, and the seconds of the training."""
    out = Path(given.out)
    quickstart = Path(given.quickstart)
    for split in PICTURES:
        make_data(out, split)
    words = [
        f"init_from={quickstart / 'questions'}",
        f"data.tokenizer={quickstart / 'tokenizer'}",
        f"data.sources.new.path={out / 'shards/train'}",
        f"data.sources.known.path={quickstart / 'data/questions'}",
        f"out={out / 'run'}",
        *([f"max_steps={given.steps}"] if given.steps else []),
    ]
    config = settings.load(RECIPE, words)
    config = replace(config, strategy=str(ROOT / config.strategy))
    asked = {  # question -> folder and split of its held-out pictures
        "is it a negative? (new)": (out / "shards", "heldout"),
        "which digit? (known)": (quickstart / "data", "examination"),
    }
    before = {name: score(quickstart / "questions", *data, out) for name, data in asked.items()}
    began = time.time()
    train.train(config)
    seconds = time.time() - began
    after = {name: score(out / "run", *data, out) for name, data in asked.items()}
    summary = {
        "before": before,
        "after": after,
        "seconds": round(seconds, 1),
        "steps": config.max_steps,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def make_data(out: Path, split: str) -> None:
    """Pictures and JSON lines of a split, and their shards."""
    folder = out / "pictures" / split
    folder.mkdir(parents=True)
    composer = compose.Composer(split)
    lines = []
    for number in range(PICTURES[split]):
        rng = np.random.default_rng([*f"{split} negatives".encode(), number])
        pixels, _ = composer.draw(rng)
        is_negative = bool(rng.integers(2))
        pixels = 255 - pixels if is_negative else pixels
        Image.fromarray(pixels).convert("RGB").save(folder / f"{number:04d}.png")
        lines.append(
            {
                "image": f"{number:04d}.png",
                "style": "vqa2",
                "question": "Is the picture a negative?",
                "answer": "yes" if is_negative else "no",
            }
        )
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, lines)) + "\n")
    make_shards.main(["jsonl", str(rows), str(out / f"shards/{split}"), "--workers", "1"])


def score(checkpoint: Path, data: Path, split: str, out: Path) -> dict[str, float]:
    """The share of right answers to the short questions of a split, and that of the best constant answer."""
    subject = Checkpoint(checkpoint, base=out / "answers" / checkpoint.name)
    job = plan(subject, TASK, split, Wish(data=data, limit=ASKED))
    figures = evaluate(job, subject.client(None), launch.alone()).figures
    return {
        "right": figures["metrics"][TASK.headline]["value"],
        "constant": figures["chance"][TASK.headline],
    }


def report(summary: dict) -> None:
    """Print the table."""
    print(
        f"\n{f'{ASKED} held-out questions':28}{'before':>8}{'after':>8}{'best constant answer':>24}"
    )
    for name, before in summary["before"].items():
        after = summary["after"][name]
        print(f"{name:28}{before['right']:8.3f}{after['right']:8.3f}{before['constant']:24.3f}")
    print(f"\n{summary['steps']} steps of adapters in {summary['seconds']} s.")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # destructors abort one process in forty once a gloo group was used
