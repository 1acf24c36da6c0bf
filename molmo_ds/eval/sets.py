"""Names on the command line to tasks and splits: `TASK`, `TASK:SPLIT`, a set, several with commas between them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.task import Task

PAPER = "paper"  # the eleven whose mean allenai/molmo's paper gives
SETS: dict[str, tuple[str, ...]] = {
    "low-res": (
        "android_control_ll",
        "countbench_qa:huggingface",
        "pixmo_count_counting:validation",
    )
    + ("pointing_eval:test",),
    "high-res": (
        "coco_2014_vqa",
        "text_vqa",
        "okvqa",
        "chart_qa",
        "doc_qa",
        "info_qa",
        "science_qa_img",
    )
    + (
        "ai2_diagram_v2_mix_transparent",
        "a_okvqa_mc",
        "a_okvqa_da",
        "mmmu_test",
        "real_world_qa_no_instruction:test",
    )
    + ("math_vista_v2", "pixmo_clocks:validation"),
    "low-res-test": (
        "countbench_qa:huggingface",
        "pixmo_count_counting:test",
        "android_control_hl_ll:test",
    )
    + ("android_control_hl:test", "vqa_v2_test:test2015"),
    "high-res-test": ("info_qa:test", "doc_qa:test", "chart_qa:test", "text_vqa")
    + (
        "ai2_diagram_v2_mix_transparent:test",
        "math_vista_v2",
        "real_world_qa_no_instruction:test",
        "a_okvqa_mc",
    )
    + ("a_okvqa_da", "mmmu_test", "a_okvqa_mc:test", "a_okvqa_da:test"),
    PAPER: (
        "ai2_diagram_v2_mix_transparent:test",
        "chart_qa:test",
        "coco_2014_vqa",
        "doc_qa:test",
        "info_qa:test",
    )
    + (
        "text_vqa",
        "real_world_qa_no_instruction:test",
        "mmmu_test",
        "math_vista_v2",
        "countbench_qa:huggingface",
    )
    + ("pixmo_count_counting:test",),
    "captioner": ("dense_caption_eval:test",),
    "pointing": ("pointing_eval:test",),
    "counting": (
        "countbench_qa:huggingface",
        "pixmo_count_counting:validation",
        "pixmo_count_counting:test",
    ),
    "video": (),
}
# the reference's code
OTHER_SPELLINGS = {"test-low-res": "low-res-test", "test-high-res": "high-res-test"}
ALIASES = {alias: task.name for task in BENCHMARKS.values() for alias in task.aliases}


def words(names: str | Iterable[str]) -> list[str]:
    """What is named, one by one."""
    given = [names] if isinstance(names, str) else names
    return [word.strip() for name in given for word in name.split(",") if word.strip()]


def resolve(names: str | Iterable[str]) -> list[tuple[Task, str]]:
    """The tasks and their splits in the order in which they are named first, each once.

    Raises ValueError for an unknown name or split, with the nearest that there is, and for a set that is empty.
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
    if not SETS[name]:
        raise ValueError(
            f"The set {name} has no tasks yet, since videos cannot be evaluated here yet."
        )
    return SETS[name]


def _task(word: str) -> tuple[Task, str]:
    name, _, split = word.partition(":")
    task = BENCHMARKS.get(ALIASES.get(name, name))
    if task is None:
        known = [*BENCHMARKS, *ALIASES, *SETS, *OTHER_SPELLINGS]
        nearest = difflib.get_close_matches(name, known, 1, 0)[0]
        raise ValueError(f"There is no task or set '{name}'; did you mean '{nearest}'?")
    if split and task.splits and split not in task.splits:
        raise ValueError(f"{task.name} has no split '{split}'; it has {', '.join(task.splits)}.")
    return task, split or task.split
