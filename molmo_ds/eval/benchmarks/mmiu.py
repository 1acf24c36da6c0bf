"""MMIU: 52 tasks over one to 62 pictures; options."""

from collections.abc import Mapping

from molmo_ds.eval.metrics.video_choice import score_mmiu
from molmo_ds.eval.row import Row
from molmo_ds.eval.task import Split, Task


def parts(row: Row) -> Mapping[str, str]:
    """How the pictures belong together, the task, and how many they are."""
    count = row.metadata["num_images"]
    many = "up to 10" if count <= 10 else "up to 20" if count <= 20 else "more than 20"
    known = {key: row.metadata[key] for key in ("relationship", "task")}
    return {**known, "pictures": many}


TASKS = [
    Task(
        name="mmiu",
        benchmark="MMIU",
        styles=("mantis_instruct_mc",),
        splits={"test": Split(shards="mmiu-test")},
        max_new_tokens=32,
        score=score_mmiu,
        headline="all",
        categories=parts,
    )
]
