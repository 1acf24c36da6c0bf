"""TextVQA: reading in photographs (textvqa.org)."""

from molmo_ds.eval.metrics.vqa import score_answers
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="text_vqa",
        benchmark="TextVQA",
        styles=("text_vqa",),
        splits={
            "validation": Split(shards="text_vqa-validation", questions=5000),
            "test": Split(shards="text_vqa-test", public=False),
        },
        max_new_tokens=12,
        crops=36,
        score=score_answers,
        headline="vqa_score",
        published=Published(figures=(78.8, 80.4, 81.7, 83.1), split="validation"),
        submission="text_vqa",
    )
]
