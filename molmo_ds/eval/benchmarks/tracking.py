"""Tracks of what an expression means, one moment a second: MeViS, Ref-YT-VOS, Ref-DAVIS17, ReasonVOS, Molmo2's own."""

from molmo_ds.eval.metrics.video_places import score_tracks, tracks_text
from molmo_ds.eval.row import by_metadata
from molmo_ds.eval.task import Split, Task

TASKS = [
    Task(
        name=f"{name}_track_eval_1fps",
        aliases=aliases,
        benchmark=f"{benchmark}, tracks",
        styles=("video_point_track_per_frame",),
        splits={"test": Split(shards=f"{name}_track_eval-test", questions=questions)},
        max_new_tokens=4096,
        score=score_tracks,
        headline="HOTA",
        truth=tracks_text,
        categories=by_metadata("video_dataset"),
    )
    for name, benchmark, questions, aliases in (
        ("mevis", "MeViS", 793, ("mevis_point_track_per_frame_fps_6_sample_fps_1",)),
        ("ref_yt_vos", "Ref-YT-VOS", 834, ()),
        ("ref_davis17", "Ref-DAVIS17", 244, ()),
        ("reasonvos", "ReasonVOS", 458, ()),
        ("molmo2_video", "Molmo2-VideoTrackEval", None, ()),
    )
]
