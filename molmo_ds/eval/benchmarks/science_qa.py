"""ScienceQA: multiple choice from school, only the questions with a picture."""

from molmo_ds.eval.metrics.choice import score_choice
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="science_qa_img",
        aliases=("science_qa",),
        benchmark="ScienceQA",
        styles=("science_qa",),
        splits={
            "validation": Split(shards="science_qa_img-validation", questions=2097),
            "test": Split(shards="science_qa_img-test"),
        },
        max_new_tokens=12,
        molmo2_new_tokens=32,
        crops=36,
        score=score_choice,
        headline="mc",
        categories=by_metadata("subject"),
    )
]
