"""BLINK: depth, correspondence, jigsaws and likeness, which people see at a glance; one to four pictures."""

from functools import partial

from molmo_ds.eval.metrics.video_choice import score_marked
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="blink",
        benchmark="BLINK",
        styles=("mantis_instruct_mc", "eval_multiple_choice"),
        splits={
            "validation": Split(shards="blink-validation"),
            "test": Split(shards="blink-test", public=False),
        },
        max_new_tokens=12,
        score=partial(score_marked, name="muir_bench_mc"),
        headline="muir_bench_mc",
        categories=by_metadata("sub_task"),
    )
]
