"""OK-VQA: questions about photographs that need knowledge of the world (okvqa.allenai.org)."""

from molmo_ds.eval.metrics.vqa import score_answers
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="okvqa",
        benchmark="OK-VQA",
        styles=("okvqa",),
        splits={"validation": Split(shards="okvqa-validation", questions=5046)},
        max_new_tokens=12,
        crops=36,
        score=score_answers,
        headline="vqa_score",
    )
]
