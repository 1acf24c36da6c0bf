"""What can be evaluated, as a table for a terminal; reads neither weights nor pictures."""

from __future__ import annotations

from pathlib import Path

from molmo_ds.data import sources
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.set_table import SETS
from molmo_ds.eval.task import MODELS, Task

NAMES = ("task:split", "benchmark", "size", "style", "tokens", "crops", "headline", *MODELS, "data")


def listing(data: Path) -> str:
    """Every task and split, the published figures, and whether its shards lie below `data`; then the sets."""
    rows = [NAMES]
    for task in BENCHMARKS.values():
        rows += [_row(task, split, data) for split in task.splits or [""]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(NAMES))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    lines += [
        "",
        f"Published figures in percent; data: whether the shards lie in {data}, or the folder to make.",
        "",
    ]
    lines += [f"{name}: {', '.join(names) or 'not yet'}" for name, names in SETS.items()]
    return "\n".join(lines)


def shards_of(task: Task, split: str, data: Path) -> Path:
    """The folder of a split's shards; a task without splits of its own asks any folder, by the split's name."""
    if not task.splits:
        return data / split
    shards = task.splits[split].shards
    name, _, theirs = shards.rpartition("-")
    return sources.folder(data, name, theirs) if name in sources.ALL else data / shards


def _row(task: Task, split: str, data: Path) -> tuple[str, ...]:
    known = task.splits.get(split)
    size = f"{known.questions:,}" if known and known.questions else "?"
    figures = ["-"] * len(MODELS)
    if task.published and task.published.split == split:
        figures = ["-" if value is None else f"{value:.1f}" for value in task.published.figures]
    if known is None:
        here = "any shards"
    elif shards_of(task, split, data).is_dir():
        here = "here"
    else:
        here = known.shards
    return (
        f"{task.name}:{split}" if split else task.name,
        task.benchmark,
        size if known is None or known.public else f"{size} (no answers)",
        ", ".join(task.styles),
        task.tokens_shown,
        str(task.crops or "model's"),
        task.headline,
        *figures,
        here,
    )
