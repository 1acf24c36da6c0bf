"""Perception Test: what happens, why and how in videos of staged scenes; three options."""

from functools import partial

from molmo_ds.eval.metrics.video_choice import first_word, score_letter
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="perception_test",
        benchmark="Perception Test",
        styles=("video_eval_multiple_choice",),
        splits={
            "validation": Split(shards="perception_test-validation", questions=19_140),
            "test": Split(shards="perception_test-test", public=False),
        },
        max_new_tokens=12,
        score=partial(score_letter, read=first_word, name="perception_test_mc", guess=False),
        headline="perception_test_mc",
        categories=by_metadata("area", "reasoning"),
    )
]
