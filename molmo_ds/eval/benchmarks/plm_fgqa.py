"""PLM-FGQA: fine points of what people do in short videos, the right option against each wrong one."""

from molmo_ds.eval.metrics.video_choice import score_fgqa
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="plm_fgqa",
        aliases=("plm_fgqa_eval",),
        benchmark="PLM-FGQA",
        styles=("video_eval_multiple_choice",),
        splits={"validation": Split(shards="plm_fgqa-validation")},
        max_new_tokens=12,
        score=score_fgqa,
        headline="accuracy",
        group=lambda row: str(row.metadata["group"]),
        categories=by_metadata("source"),
    )
]
