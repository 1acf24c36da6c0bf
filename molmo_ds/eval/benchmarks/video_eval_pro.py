"""VideoEval-Pro: questions of four long-video sets, here with their options; answered freely they need a judge."""

from molmo_ds.eval.metrics.video_choice import score_start
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name="video_eval_pro_mc",
        benchmark="VideoEval-Pro, multiple choice",
        styles=("video_eval_multiple_choice",),
        splits={"test": Split(shards="video_eval_pro_mc-test")},
        max_new_tokens=32,
        score=score_start,
        headline="em_start",
        categories=by_metadata("source", "qa_type", "qa_subtype"),
    )
]
