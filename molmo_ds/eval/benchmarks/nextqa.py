"""NExT-QA: why, how, before and after in videos of daily life; five options."""

from functools import partial

from molmo_ds.eval.metrics.video_choice import last_named, score_letter
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="nextqa_mc",
        benchmark="NExT-QA",
        styles=("video_eval_multiple_choice",),
        splits={"test": Split(shards="nextqa_mc-test", questions=8564)},
        max_new_tokens=12,
        score=partial(score_letter, read=last_named, name="nextqa_mc"),
        headline="nextqa_mc",
        categories=by_metadata("question_type"),
    )
]
