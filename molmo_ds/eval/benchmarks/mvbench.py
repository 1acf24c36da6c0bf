"""MVBench: twenty kinds of questions about what happens in short videos, with options."""

from molmo_ds.eval.metrics.video_choice import score_start
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="mvbench",
        benchmark="MVBench",
        styles=("video_eval_multiple_choice",),
        splits={"validation": Split(shards="mvbench-validation", questions=4000)},
        max_new_tokens=32,
        score=score_start,
        headline="em_start",
        categories=by_metadata("task_type"),
    )
]
