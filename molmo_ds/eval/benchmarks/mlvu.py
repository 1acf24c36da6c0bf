"""MLVU: plots, needles, counts and orders in long videos with options; scenes and summaries for a judge."""

from molmo_ds.eval.metrics.video_choice import score_start
from molmo_ds.eval.row import by_metadata, unscored
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="mlvu_mc",
        benchmark="MLVU, multiple choice",
        styles=("video_eval_multiple_choice",),
        splits={
            "validation": Split(shards="mlvu_mc-validation", questions=2174),
            "test": Split(shards="mlvu_mc-test"),
        },
        max_new_tokens=12,
        score=score_start,
        headline="em_start",
        categories=by_metadata("task_type"),
    ),
    Task(
        name="mlvu_gen",
        benchmark="MLVU, generation",
        styles=("demo",),
        splits={"validation": Split(shards="mlvu_gen-validation")},
        max_new_tokens=192,
        score=unscored,
        headline="none",
        categories=by_metadata("task_type"),
    ),
]
