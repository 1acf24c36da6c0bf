"""MuirBench: questions about two to nine pictures, some of which have no answer and say so; options."""

from functools import partial

from molmo_ds.eval.metrics.video_choice import score_marked
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="muir_bench",
        benchmark="MuirBench",
        styles=("mantis_instruct_mc",),
        splits={"test": Split(shards="muir_bench-test")},
        max_new_tokens=12,
        molmo2_new_tokens=32,
        score=partial(score_marked, name="muir_bench_mc"),
        headline="muir_bench_mc",
        categories=by_metadata("task", "image_relation", "image_type"),
    )
]
