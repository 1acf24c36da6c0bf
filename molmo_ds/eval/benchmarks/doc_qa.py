"""DocVQA: questions about scanned documents (Robust Reading Competition, challenge 17, task 1)."""

from molmo_ds.eval.metrics.anls import score_anls
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="doc_qa",
        benchmark="DocVQA",
        styles=("doc_qa",),
        splits={
            "validation": Split(shards="doc_qa-validation", questions=5349),
            "test": Split(shards="doc_qa-test", questions=5188, public=False),
        },
        max_new_tokens=12,
        crops=36,
        score=score_anls,
        headline="anls",
        published=Published(figures=(77.7, 90.8, 92.2, 93.5), split="test"),
        submission="doc_qa",
    )
]
