"""Video-MME: videos of three lengths up to an hour, with subtitles or without; four options."""

from molmo_ds.eval.metrics.video_choice import score_video_mme
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

STYLES = ("video_eval_multiple_choice", "video_eval_multiple_choice_w_subtitle")
_LENGTHS = ("short", "medium", "long")
_PARTS = {
    "video_mme": ("video_mme", _LENGTHS),
    **{f"video_mme_{length}": ("video_mme", (length,)) for length in _LENGTHS},
    "video_mme_w_subtitle": ("video_mme_w_subtitle", _LENGTHS),
}

TASKS = [
    Task(
        name=name,
        benchmark="Video-MME" + (", subtitles" if name.endswith("_w_subtitle") else ""),
        styles=STYLES,
        splits={
            "validation": Split(shards=f"{shards}-validation", questions=900 * len(lengths)),
        },
        max_new_tokens=12,
        score=score_video_mme,
        headline="all",
        where=lambda metadata, lengths=lengths: metadata.get("duration") in lengths,
        categories=by_metadata("domain", "sub_category", "task_type"),
    )
    for name, (shards, lengths) in _PARTS.items()
]
