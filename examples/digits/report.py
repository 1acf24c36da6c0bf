"""What the quickstart found: the examination, summary.json, predictions.png and the table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from molmo_ds.data.decode import load_image
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.engine import launch
from molmo_ds.eval import page, results
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.metrics.pointing import extract_points
from molmo_ds.eval.plan import Wish, plan
from molmo_ds.eval.row import Row
from molmo_ds.eval.run import Outcome, evaluate
from molmo_ds.eval.subject import Checkpoint

LAST_BYTES = 16_384  # of a log; a line has about a thousand
SHOWN = 8  # pictures in predictions.png, which the README shows
COLUMNS = 4
TILE = 224  # side of a picture there
WIDTH = 34  # characters of an answer below a picture
WHAT = {  # name in the summary -> task, score
    "reading_accuracy": ("short_answers", "vqa_score"),
    "counting_accuracy": ("counts", "correct"),
    "counting_within_1": ("counts", "close"),
    "pointing_f1": ("points", "f1"),
}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log.jsonl."""
    if not path.exists():
        return []
    return [
        json.loads(line)
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line of a run's log.jsonl; it is asked for ten times a second, so the rest is not read."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        whole = file.read().rpartition(b"\n")[0]
    line = whole.rpartition(b"\n")[2]
    return json.loads(line) if line else None


def write(out: Path, stages: dict[str, int], facts: dict[str, Any]) -> None:
    """Examine the trained model on the held-out pictures and write summary.json, predictions.png and sample.png."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    outcomes = examine(out)
    found = {task: outcome.figures for task, outcome in outcomes.items()}
    logs = {stage: read_log(out / stage / "log.jsonl") for stage in stages}
    rows = [row for log in logs.values() for row in log]
    seconds = [
        json.loads(line)["seconds"] for line in (out / "seconds.jsonl").read_text().splitlines()
    ]
    summary = {
        **{
            name: round(found[task]["metrics"][score]["value"], 4)
            for name, (task, score) in WHAT.items()
        },
        "chance": {
            name: round(found[task]["chance"][score], 4) for name, (task, score) in WHAT.items()
        },
        "questions": {task: part["questions"] for task, part in found.items()},
        "train_seconds": round(sum(seconds), 1),
        "tokens_per_second": round(
            sum(r["tokens"] for r in rows) / sum(r["step_seconds"] for r in rows), 1
        ),
        "packing_fill": round(
            sum(r["tokens"] for r in rows) / sum(r["positions"] for r in rows), 4
        ),
        "last_loss": {stage: log[-1]["loss"] for stage, log in logs.items()},
        "resume": resumed(read_log(out / "questions/killed.jsonl"), logs["questions"]),
        **facts,
    }
    shards = ShardSet(str(out / "data/examination"))
    draw(outcomes, shards, out / "predictions.png")
    Image.fromarray(load_image(shards.read(0)["pixels"][0])).save(out / "sample.png")
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def examine(out: Path) -> dict[str, Outcome]:
    """Ask the questions of every task about the held-out pictures; their pages are in OUT/questions/predictions-*."""
    subject = Checkpoint(out / "questions")
    outcomes = {}
    for name in dict.fromkeys(task for task, _ in WHAT.values()):
        job = plan(subject, BENCHMARKS[name], "examination", Wish(data=out / "data"))
        outcome = evaluate(job, subject.client(None), launch.alone(), overwrite=True)
        results.write(job, outcome, {}, subject.described(None))
        page.write(job, outcome)
        outcomes[name] = outcome
    return outcomes


def resumed(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the losses of the steps that were made before the kill and again after it."""
    again = {row["step"]: row for row in after}
    same = [
        (row, again[row["step"]]) for row in before if again[row["step"]]["time"] != row["time"]
    ]
    return {
        "killed_behind_step": before[-1]["step"],
        "resumed_from_step": same[0][0]["step"] - 1 if same else None,
        "steps_made_twice": len(same),
        "largest_difference_of_loss": max(
            (abs(a["loss"] - b["loss"]) for a, b in same), default=None
        ),
    }


def show(out: Path) -> None:
    """Print the table."""
    summary = json.loads((out / "summary.json").read_text())
    print(f"\n{'held-out scans':22}{'score':>8}{'best constant answer':>24}")
    for name in WHAT:
        print(f"{name:22}{summary[name]:8.3f}{summary['chance'][name]:24.3f}")
    again = summary["resume"]
    print(
        f"\n{summary['steps']} steps on {summary['ranks']} ranks, ZeRO-{summary['strategy']['stage']}: "
        f"{summary['train_seconds']:.0f} s, {summary['tokens_per_second']:.0f} tokens/s, "
        f"packing {summary['packing_fill']:.1%} full.\n"
        f"Killed after step {again['killed_behind_step']} of the second stage, resumed from step "
        f"{again['resumed_from_step']}: the {again['steps_made_twice']} losses made twice differ by at most "
        f"{again['largest_difference_of_loss']}.\n{out / 'summary.json'}\n{out / 'predictions.png'}"
    )


def draw(outcomes: dict[str, Outcome], shards: ShardSet, path: Path) -> None:
    """A grid of held-out pictures with the questions, the answers (green right, red wrong) and the points given."""
    by_picture: dict[int, list[tuple[str, Row, dict[str, Any]]]] = {}
    for task, outcome in outcomes.items():
        for row, scored in outcome.pairs():
            by_picture.setdefault(row.index, []).append((task, row, scored))
    font = ImageFont.load_default(12)
    line = 15
    height = TILE + 6 * line + 10
    rows = -(-min(SHOWN, len(by_picture)) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * (TILE + 12), rows * height), "white")
    pen = ImageDraw.Draw(grid)
    for number, index in enumerate(sorted(by_picture)[:SHOWN]):
        left = number % COLUMNS * (TILE + 12) + 6
        top = number // COLUMNS * height + 6
        picture = Image.fromarray(load_image(shards.read(index)["pixels"][0]))
        grid.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))
        for i, (task, row, scored) in enumerate(by_picture[index]):
            right = scored["scores"][BENCHMARKS[task].headline] == 1
            color = (0, 130, 0) if right else (200, 0, 0)
            y = top + TILE + 2 + 2 * i * line
            pen.text((left, y), row.annotation["question"], "black", font)
            pen.text((left + 8, y + line), _short(task, scored["reply"]), color, font)
            if task == "points":
                for x, y in extract_points(scored["reply"], TILE, TILE):
                    pen.ellipse(
                        (left + x - 5, top + y - 5, left + x + 5, top + y + 5), color, "white", 2
                    )
    grid.save(path)


def _short(task: str, reply: str) -> str:
    points = " ".join(f"({x:.0f}, {y:.0f})" for x, y in extract_points(reply, 100, 100))
    total = reply.rpartition("a total of ")[2] if task == "counts" else ""
    shown = "".join(c if c.isprintable() else " " for c in points or reply).strip()
    end = f" {total}".rstrip() if points else ""
    if len(shown) + len(end) > WIDTH:
        shown = shown[: WIDTH - len(end) - 3] + "..."
    return shown + end if shown else "(no answer)"
