"""Any shards with true answers, scored by the style of their annotations: for a user's own data."""

from molmo_ds.eval.metrics.anls import score_anls
from molmo_ds.eval.metrics.chart import score_chart
from molmo_ds.eval.metrics.choice import score_choice
from molmo_ds.eval.metrics.count import per_category_average, score_count, true_count_text
from molmo_ds.eval.metrics.pointing import score_points
from molmo_ds.eval.metrics.vqa import score_answers, score_direct
from molmo_ds.eval.task import Task

_SHORT = ("vqa2", "coco_captioning_qa", "gqa", "tally_qa", "okvqa", "text_vqa", "st_qa")
_CHARTS = ("chart_qa", "plot_qa", "figure_qa", "dv_qa")
_CHOICES = ("a_okvqa_mc", "ai2_diagram", "science_qa", "ai2_diagram_no_letter")

TASKS = [
    Task(
        name=name,
        benchmark=benchmark,
        styles=styles,
        splits={},
        max_new_tokens=12,
        score=score,
        headline=headline,
    )
    for name, benchmark, styles, score, headline in (
        ("short_answers", "Short answers", _SHORT, score_answers, "vqa_score"),
        ("direct_answers", "Direct answers", ("a_okvqa_da",), score_direct, "a_okvqa_score"),
        ("charts", "Charts", _CHARTS, score_chart, "relaxed_correctness"),
        ("documents", "Documents", ("doc_qa", "info_qa"), score_anls, "anls"),
        ("choices", "Multiple choice", _CHOICES, score_choice, "mc"),
    )
] + [
    Task(
        name="counts",
        benchmark="Counts",
        styles=("point_count",),
        splits={},
        max_new_tokens=192,
        score=score_count,
        headline="correct",
        truth=true_count_text,
        derived=per_category_average,
    ),
    Task(
        name="points",
        benchmark="Points",
        styles=("pointing",),
        splits={},
        max_new_tokens=192,
        score=score_points,
        headline="f1",
    ),
]
