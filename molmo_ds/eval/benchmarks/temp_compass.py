"""TempCompass: speed, direction, order, change and action in short videos, asked in four ways.

Rules alone score three of them; captions are asked, and left to a judge.
"""

from molmo_ds.data.sources.videos.short_videos import TEMP_COMPASS
from molmo_ds.eval.metrics.temp_compass import score_temp_compass
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

_PARTS = {
    "temp_compass": tuple(TEMP_COMPASS),
    "temp_compass_internal": ("multi-choice", "yes_no", "caption_matching"),
    **{f"temp_compass_{part}": (part,) for part in TEMP_COMPASS},
}

TASKS = [
    Task(
        name=name,
        aliases=(f"{name}_disable_api",),  # by rules only, which is what there is
        benchmark="TempCompass" + ("" if len(parts) == len(TEMP_COMPASS) else ", some parts"),
        styles=("video_eval_multiple_choice", "video_eval_short_answer", "demo"),
        splits={
            "validation": Split(
                shards="temp_compass-validation",
                questions=7540 if len(parts) == len(TEMP_COMPASS) else None,
            )
        },
        max_new_tokens=192,
        score=score_temp_compass,
        headline="all",
        where=lambda metadata, parts=parts: metadata.get("task") in parts,
        categories=by_metadata("temporal_aspect"),
    )
    for name, parts in _PARTS.items()
]
