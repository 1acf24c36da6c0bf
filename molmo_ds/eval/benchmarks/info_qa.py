"""InfographicVQA: questions about infographics (Robust Reading Competition, challenge 17, task 3)."""

from molmo_ds.eval.metrics.anls import score_anls
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="info_qa",
        benchmark="InfographicVQA",
        styles=("info_qa",),
        splits={
            "validation": Split(shards="info_qa-validation", questions=2801),
            "test": Split(shards="info_qa-test", questions=3288, public=False),
        },
        max_new_tokens=12,
        crops=36,
        score=score_anls,
        headline="anls",
        published=Published(figures=(53.9, 70.0, 72.6, 81.9), split="test"),
        submission="info_qa",
    )
]
