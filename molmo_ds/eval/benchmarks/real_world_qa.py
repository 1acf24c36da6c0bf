"""RealWorldQA: what is seen from a car or by a walker, answered by a letter or by a word."""

from molmo_ds.eval.metrics.real_world import score_real_world
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="real_world_qa_no_instruction",
        aliases=("real_world_qa",),
        benchmark="RealWorldQA",
        styles=("eval_short_answer", "eval_multiple_choice"),
        splits={"test": Split(shards="real_world_qa-test", questions=765)},
        max_new_tokens=12,
        crops=36,
        score=score_real_world,
        headline="real_world_qa_score",
        categories=by_metadata("question_type"),
        published=Published(figures=(60.4, 67.5, 70.7, 75.2), split="test"),
    )
]
