"""Pointing: PixMo-Points' evaluation set, where a point counts inside of the object's mask."""

from molmo_ds.eval.metrics.pointing import score_points
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="pointing_eval",
        aliases=("pointing_eval_v2", "pixmo_point_eval2"),
        benchmark="PixMo-Points",
        styles=("pointing",),
        splits={"test": Split(shards="pixmo_points_eval-test")},
        max_new_tokens=192,
        score=score_points,
        headline="f1",
        published=Published(figures=(72.2, 75.1, 74.3, 75.2), split="test"),
    )
]
