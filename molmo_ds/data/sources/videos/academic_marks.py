"""Tracks and points of academic videos as Molmo2 was trained on them: annotations on the hub, videos by hand.

A set's videos go below its folder as videos/VIDEO.mp4 (points: videos/SUBSET/VIDEO.mp4). Those that are published as
frames become videos of the row's `fps` pictures a second. Layouts: allenai/molmo2 at f3cb108,
olmo/data/academic_video_track_datasets.py and academic_video_datasets.py (AcademicVideoPoint).
"""

from functools import partial

from molmo_ds.data.sources.molmo2 import (
    BY_HAND,
    DRAWN,
    GRID,
    LICENCE,
    LONGEST,
    TRACKS,
    half_seconds,
    track,
)
from molmo_ds.data.sources.source import Item, LeftOut, Picture, Row, Source, annotation

LAYOUT = "allenai/molmo2, olmo/data/academic_video_track_datasets.py"
SEVERAL = {  # of several objects: name -> repository below allenai/, tasks
    "mevis": ("molmo2-mevis", ("track", "ground", "single_point_track")),
    "ref_yt_vos": ("molmo2-ref-yt-vos", ("track",)),
    "ref_davis17": ("molmo2-ref-davis17", ("track",)),
    "burst": ("molmo2-burst", ("track", "ground", "single_point_track")),
    "lv_vis": ("molmo2-lv-vis", ("track", "ground", "single_point_track")),
    "yt_vis": ("molmo2-yt-vis", ("track",)),
    "vicas": ("molmo2-vicas", ("track", "ground", "single_point_track")),
    "revos": ("molmo2-revos", ("track", "ground", "single_point_track")),
    "moca": ("molmo2-moca", ("track", "ground")),
}
SINGLE = "allenai/molmo2-single-object-track"
ONE = {  # of one object: name -> its configuration there
    **{name: name for name in ("lvosv1", "lvosv2", "lasot", "uwcot", "webuot", "latot", "tnl2k")},
    **{name: name for name in ("webuav", "got10k", "vasttrack", "trackingnet")},
    "tnllt": "tnnlt",
}
MOST_POINTS = 60


def tracked(row: Row, split: str, task: str) -> list[Item]:
    """As Molmo2's own tracks; the videos have no clips."""
    return track(row, split, task, f"videos/{row['video']}.mp4")


def points(row: Row, split: str) -> list[Item]:
    """Every place and time of a kind of object, in percent, in a clip of at most 63 seconds."""
    if row["count"] > MOST_POINTS:
        raise LeftOut(f"annotation of more than {MOST_POINTS} points")
    begin = row["clip_start_time"]
    end = row["clip_end_time"]
    if end - begin > LONGEST:
        raise LeftOut(f"clip of more than {LONGEST:g} seconds")
    times = sorted(zip(row["timestamps"], row["points"]), key=lambda moment: moment[0])
    if any(abs((time - begin) / GRID - round((time - begin) / GRID)) > 1e-5 for time, _ in times):
        raise LeftOut("points between half seconds of the clip")
    groups = [
        {"time": half_seconds(time - begin), "points": [[one["x"], one["y"]] for one in frame]}
        for time, frame in times
    ]
    label = row["category"].lower()
    known = {"label": label, "point_groups": groups, "point_scale": 100}
    asked = [annotation(style, **known) for style in DRAWN]
    metadata = {"video_id": row["video_name"], "subset": row["subset"], "count": row["count"]}
    video = Picture(path=f"videos/{row['subset']}/{row['video_name']}.mp4")
    return [Item((video,), [{"one_of": asked}], metadata, {"clip": [float(begin), float(end)]})]


def _tracks(name: str, task: str, hub: str, config: str) -> Source:
    return Source(
        f"{name}_{task}",
        LICENCE,
        LAYOUT,
        partial(tracked, task=task),
        {"train": "train"},
        hub,
        (config,),
        by_hand=BY_HAND,
    )


SOURCES = [
    *(
        _tracks(name, task, f"allenai/{repository}", task)
        for name, (repository, tasks) in SEVERAL.items()
        for task in TRACKS
        if task in tasks
    ),
    *(_tracks(name, "single_point_track", SINGLE, config) for name, config in ONE.items()),
    Source(
        "academic_points_clip_63s_2fps",
        LICENCE,
        "allenai/molmo2, olmo/data/academic_video_datasets.py",
        points,
        {"train": "train"},
        "allenai/molmo2-academic-video-points",
        aliases=("academic_video_points",),
        by_hand=BY_HAND,
    ),
]
