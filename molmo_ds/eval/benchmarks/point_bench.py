"""PointBench: places that people ask for in words of their own; every point must lie in one mask."""

from molmo_ds.eval.metrics.pointing import average_of_categories, point_inside, score_in_mask
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="point_bench",
        benchmark="PointBench",
        styles=("pointing",),
        splits={"test": Split(shards="point_bench-test")},
        max_new_tokens=256,
        score=score_in_mask,
        headline="all",
        truth=point_inside,
        derived=average_of_categories,
        categories=by_metadata("category"),
    )
]
