"""ST-VQA: text in scenes (Robust Reading Competition, challenge 11, task 3).

Its validation questions are held out of training, as the reference draws them.
"""

from molmo_ds.eval.metrics.anls import score_anls
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="st_qa",
        benchmark="ST-VQA",
        styles=("st_qa",),
        splits={
            "validation": Split(shards="st_qa-validation", questions=1024),
            "test": Split(shards="st_qa-test", public=False),
        },
        max_new_tokens=12,
        crops=36,
        score=score_anls,
        headline="anls",
    )
]
