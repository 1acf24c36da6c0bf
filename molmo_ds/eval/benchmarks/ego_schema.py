"""EgoSchema: what somebody does over three minutes, seen through their eyes; five options."""

from functools import partial

from molmo_ds.eval.metrics.video_choice import first_named, score_letter
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="ego_schema",
        benchmark="EgoSchema",
        styles=("video_eval_multiple_choice",),
        splits={
            "validation": Split(shards="ego_schema-validation", questions=500),
            "test": Split(shards="ego_schema-test", questions=5031, public=False),
        },
        max_new_tokens=32,
        score=partial(score_letter, read=first_named, name="ego_schema_mc"),
        headline="ego_schema_mc",
    )
]
