"""LongVideoBench: questions that refer to a moment of a video of up to an hour, with subtitles or without.

Without them the questions about what is said are left out in `long_video_bench_no_subtitle`, and asked in
`long_video_bench`.
"""

from collections.abc import Mapping
from typing import Any

from molmo_ds.eval.metrics.video_choice import score_long_video_bench
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task


def of_pictures(metadata: Mapping[str, Any]) -> bool:
    """Whether neither the question nor an option speaks of subtitles."""
    return not metadata.get("asks_of_subtitles")


TASKS = [
    Task(
        name=name,
        benchmark=benchmark,
        styles=("video_eval_multiple_choice", "video_eval_multiple_choice_w_subtitle"),
        splits={
            "validation": Split(shards=f"{shards}-validation", questions=questions),
            "test": Split(shards=f"{shards}-test", public=False),
        },
        max_new_tokens=12,
        score=score_long_video_bench,
        headline="all",
        where=where,
        categories=by_metadata("question_category", "level"),
    )
    for name, benchmark, shards, questions, where in (
        ("long_video_bench", "LongVideoBench", "long_video_bench", 1337, lambda metadata: True),
        (
            "long_video_bench_no_subtitle",
            "LongVideoBench, of pictures",
            "long_video_bench",
            None,
            of_pictures,
        ),
        (
            "long_video_bench_w_subtitle",
            "LongVideoBench, subtitles",
            "long_video_bench_w_subtitle",
            1337,
            lambda metadata: True,
        ),
    )
]
