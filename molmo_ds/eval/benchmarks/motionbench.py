"""MotionBench: small and fast motions; the options stand in the question's text."""

from molmo_ds.eval.metrics.video_choice import score_start
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="motionbench",
        benchmark="MotionBench",
        styles=("video_eval_multiple_choice",),
        splits={
            "validation": Split(shards="motionbench-validation"),
            "test": Split(shards="motionbench-test", public=False),
        },
        max_new_tokens=12,
        score=score_start,
        headline="em_start",
        categories=by_metadata("task_type", "video_type"),
    )
]
