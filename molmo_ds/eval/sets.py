"""Names on the command line to tasks and splits: `TASK`, `TASK:SPLIT`, a set, several with commas between them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.set_table import OTHER_SPELLINGS, PAPER, SETS, SPLIT_SPELLINGS
from molmo_ds.eval.task import Task

ALIASES = {alias: task.name for task in BENCHMARKS.values() for alias in task.aliases}


def words(names: str | Iterable[str]) -> list[str]:
    """What is named, one by one."""
    given = [names] if isinstance(names, str) else names
    return [word.strip() for name in given for word in name.split(",") if word.strip()]


def resolve(names: str | Iterable[str]) -> list[tuple[Task, str]]:
    """The tasks and their splits in the order in which they are named first, each once.

    Raises ValueError for an unknown name or split, with the nearest that there is.
    """
    found: dict[str, tuple[Task, str]] = {}
    for word in words(names):
        for one in members(word):
            task, split = _task(one)
            found.setdefault(f"{task.name}:{split}", (task, split))
    if not found:
        raise ValueError(f"No task is named; give names of tasks or a set ({', '.join(SETS)}).")
    return list(found.values())


def published_crops(names: str | Iterable[str], task: Task, split: str) -> int | None:
    """The crops of a task's published figures where the set `paper`, of which it is one, is named; else None."""
    return task.crops if PAPER in words(names) and f"{task.name}:{split}" in labels(PAPER) else None


def labels(word: str) -> list[str]:
    """TASK:SPLIT of everything that a word stands for."""
    return [f"{task.name}:{split}" for task, split in resolve(word)]


def members(word: str) -> tuple[str, ...]:
    """What a word of the command line stands for: the tasks of a set, or itself."""
    name = OTHER_SPELLINGS.get(word, word)
    if name not in SETS:
        return (word,)
    return SETS[name]


def _task(word: str) -> tuple[Task, str]:
    name, _, split = SPLIT_SPELLINGS.get(word, word).partition(":")
    task = BENCHMARKS.get(ALIASES.get(name, name))
    if task is None:
        known = [*BENCHMARKS, *ALIASES, *SETS, *OTHER_SPELLINGS]
        nearest = difflib.get_close_matches(name, known, 1, 0)[0]
        raise ValueError(f"There is no task or set '{name}'; did you mean '{nearest}'?")
    if split and task.splits and split not in task.splits:
        raise ValueError(f"{task.name} has no split '{split}'; it has {', '.join(task.splits)}.")
    return task, split or task.split
