"""VQAv2: questions about COCO's photographs, ten people's answers each (visualqa.org).

The reference scores the validation split, and sends the test split to a server whose figures are the published ones.
"""

from molmo_ds.eval.metrics.vqa import score_answers
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="coco_2014_vqa",
        aliases=("coco_2014_vqa_multi", "vqa_v2"),
        benchmark="VQAv2",
        styles=("vqa2",),
        splits={"validation": Split(shards="coco_2014_vqa_multi-validation", questions=214354)},
        max_new_tokens=12,
        crops=36,
        score=score_answers,
        headline="vqa_score",
        categories=by_metadata("answer_type"),
        published=Published(figures=(83.9, 85.3, 85.6, 86.5), split="test-dev"),
    ),
    Task(
        name="vqa_v2_test",
        benchmark="VQAv2, test",
        styles=("vqa2",),
        splits={
            "test2015": Split(shards="coco_2014_vqa_multi-test", questions=447793, public=False)
        },
        max_new_tokens=12,
        crops=36,
        score=score_answers,
        headline="vqa_score",
        submission="vqa2",
    ),
]
