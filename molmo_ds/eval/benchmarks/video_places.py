"""Molmo2's counts and points in videos of up to a minute: how many, and where and when."""

from molmo_ds.eval.metrics.video_places import (
    average_of_bins,
    places_text,
    score_count,
    score_places,
)
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="vixmo_points_count_clip_63s",
        aliases=("molmo2_video_count_eval",),
        benchmark="Molmo2-VideoCountEval",
        styles=("video_count",),
        splits={"val": Split(shards="molmo2_video_count_eval-val")},
        max_new_tokens=2048,
        score=score_count,
        headline="correct",
        truth=lambda row: str(row.metadata["count"]),
        derived=average_of_bins,
        categories=by_metadata("subset"),
    ),
    Task(
        name="vixmo_points_point_eval",
        aliases=("molmo2_video_point_eval",),
        benchmark="Molmo2-VideoPointEval",
        styles=("video_point_count",),
        splits={"val": Split(shards="molmo2_video_point_eval-val")},
        max_new_tokens=2048,
        score=score_places,
        headline="f1",
        truth=places_text,
    ),
]
