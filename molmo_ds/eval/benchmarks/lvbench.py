"""LVBench: events, entities and summaries of videos of an hour; four options."""

from molmo_ds.eval.metrics.video_choice import score_lvbench
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="lvbench",
        benchmark="LVBench",
        styles=("video_eval_multiple_choice",),
        splits={"test": Split(shards="lvbench-test")},
        max_new_tokens=12,
        score=score_lvbench,
        headline="all",
        categories=by_metadata("type"),
    )
]
