"""MathVista: mathematics in pictures; without a judge an answer has to be the whole reply."""

from molmo_ds.eval.metrics.math_vista import score_math_vista
from molmo_ds.eval.row import by_metadata, true_answer
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="math_vista_v2",
        aliases=("math_vista",),
        benchmark="MathVista",
        styles=("eval_short_answer", "eval_multiple_choice"),
        splits={
            "validation": Split(shards="math_vista-validation", questions=1000),
            "test": Split(shards="math_vista-test", questions=5141, public=False),
        },
        max_new_tokens=12,
        molmo2_new_tokens=32,
        crops=36,
        score=score_math_vista,
        headline="score",
        truth=lambda row: true_answer(row) or row.metadata.get("answer") or None,
        categories=by_metadata("question_type", "answer_type", "task"),
        published=Published(figures=(34.0, 44.5, 51.6, 58.6), split="validation"),
    )
]
