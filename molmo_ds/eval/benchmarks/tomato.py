"""TOMATO: directions, rotations, counts and speeds that no single frame shows."""

from molmo_ds.eval.metrics.choice import score_choice
from molmo_ds.eval.metrics.video_choice import in_parts
from molmo_ds.eval.row import Row, Scores, by_metadata
from molmo_ds.eval.task import Split, Task


def score(reply: str, row: Row) -> Scores:
    """`all`, and the same for the kind of reasoning; the option is read as AI2D's."""
    found = score_choice(reply, row)
    scores = {"all": found["mc"], "unreadable": found["unreadable"]}
    return in_parts(scores, row.metadata["reasoning_type"])


TASKS = [
    Task(
        name="tomato",
        benchmark="TOMATO",
        styles=("video_multiple_choice",),
        splits={"test": Split(shards="tomato-test")},
        max_new_tokens=32,
        score=score,
        headline="all",
        categories=by_metadata("demonstration_type"),
    )
]
