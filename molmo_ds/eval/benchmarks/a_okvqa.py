"""A-OKVQA: questions about photographs that need knowledge, with four options (mc) or answered directly (da)."""

from molmo_ds.eval.metrics.choice import score_choice
from molmo_ds.eval.metrics.vqa import score_direct
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="a_okvqa_mc",
        benchmark="A-OKVQA, multiple choice",
        styles=("a_okvqa_mc",),
        splits={
            "validation": Split(shards="a_okvqa_mc-validation", questions=1145),
            "test": Split(shards="a_okvqa_mc-test", questions=6702, public=False),
        },
        max_new_tokens=12,
        molmo2_new_tokens=32,
        crops=36,
        score=score_choice,
        headline="mc",
        submission="a_okvqa_mc",
    ),
    Task(
        name="a_okvqa_da",
        benchmark="A-OKVQA, direct answer",
        styles=("a_okvqa_da",),
        splits={
            "validation": Split(shards="a_okvqa_da-validation"),
            "test": Split(shards="a_okvqa_da-test", public=False),
        },
        max_new_tokens=12,
        crops=36,
        score=score_direct,
        headline="a_okvqa_score",
        submission="a_okvqa_da",
    ),
]
