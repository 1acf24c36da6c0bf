"""Places in videos that evaluation asks for: Molmo2's counts, points and tracks, and tracks of referring expressions.

Points count inside masks, of which those are kept that a score reads: `masks` of an annotation holds, for each point of
`point_groups` in order, a list of [seconds, mask], and for each moment of `tracks` an object of masks by the object's
name, of hidden objects too; the record's `objects` are the names in the order in which their masks are published, and
`numbered` in that of the set's own numbers. A moment's points keep the order in which they are published.
Layouts: allenai/molmo2 at f3cb108, olmo/data/molmo2_datasets.py, molmo2_video_track_datasets.py and
academic_video_track_datasets.py; what its download makes of the sets' masks (MasksRLE) is read as it is.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molmo_ds.data.sample.times import dividing
from molmo_ds.data.sources.masks import runs_of_coco
from molmo_ds.data.sources.source import (
    Item,
    Picture,
    Row,
    Source,
    annotation,
    apart,
    read_json,
    twins,
)
from molmo_ds.data.sources.videos.video_choices import clip_of, read_table

LAYOUT = "allenai/molmo2, olmo/data"
LICENCE = "not read*"
MASKS_A_SECOND = 2  # of Molmo2's points
TRACKED = 1  # moments a second that are asked for
STYLE = "video_point_track_per_frame"


def read_hub(folder: Path, split: str) -> Iterator[Row]:
    """All parquet files of a folder, in the order of their names."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.parquet"))
    if not names:
        raise FileNotFoundError(None, None, f"{folder}/*.parquet")
    for name in names:
        yield from read_table(folder, str(name))


def read_places(folder: Path, split: str) -> Iterator[Row]:
    """The rows of a folder, of which several may be about one label in one video: in other clips of it."""
    yield from twins(read_hub(folder, split), "video_id", "label")


def count(row: Row, split: str) -> list[Item]:
    """How often something is there, in a clip of at most 63 seconds."""
    asked = annotation("video_count", question=row["question"], label=row["label"])
    name = apart(f"{row['video_id']}_{row['label']}", row)
    known = {"example_id": name, "video_id": row["video_id"]}
    known |= {"count": row["count"], "subset": row["category"]}
    video = (Picture(path=f"videos/{row['video_id']}.mp4"),)
    return [Item(video, [asked], known, clip_of(row, "clip_start", "clip_end"))]


def points(row: Row, split: str) -> list[Item]:
    """Where and when something is there: one point an object, which counts inside the object's masks."""
    groups = [
        {"time": time, "points": [[point["x"], point["y"]]]}
        for time, point in zip(row["two_fps_timestamps"], row["points"], strict=True)
    ]
    masks = [
        [[one["frame_id"] / MASKS_A_SECOND, runs_of_coco(one["rle"])] for one in seen]
        for seen in row["masks"]
    ]
    asked = annotation(
        "video_point_count",
        question=f'How many "{row["label"]}" are there in the video?',
        label=row["label"],
        point_groups=groups,
        masks=masks,
    )
    name = apart(f"{row['video_id']}_{row['label']}", row)
    known = {"example_id": name, "video_id": row["video_id"]}
    known |= {key: row[key] for key in ("video_duration", "width", "height")}
    return [Item((Picture(path=f"videos/{row['video_id']}.mp4"),), [asked], known)]


def track(row: Row, split: str) -> list[Item]:
    """Molmo2's tracks: points of each object in every frame, None where it is not seen."""
    step = row["fps"] // TRACKED
    points = {one["object_id"]: one["points"] for one in row["points"]}
    masks = {str(one["object_id"]): one["masks"] for one in row["masks"]}
    moments: dict[int, dict[str, list[float]]] = {}
    for name, seen in points.items():
        for frame, point in enumerate(seen):
            if point and frame % step == 0:
                moments.setdefault(frame, {})[str(name)] = list(point)
    known = {"video_dataset": row["video_dataset"], "video_id": row["clip"]}
    known["numbered"] = [str(name) for name in row["mask_id"]]
    video = f"videos/{row['video_dataset']}/{row['clip']}.mp4"
    return _tracks(row, row["exp"], moments, masks, (row["w"], row["h"]), video, known)


def read_expressions(folder: Path, split: str) -> Iterator[Row]:
    """The hub's rows of tracks at one moment a second, with MasksRLE/VIDEO/QUESTION.json."""
    for row in read_hub(folder, split):
        if row["sampling_fps"] == TRACKED and row["fps"] % TRACKED == 0:
            masks = read_json(folder, f"MasksRLE/{row['video']}/{row['qid']}.json")
            yield {**row, "masks": masks}


def expression(row: Row, split: str) -> list[Item]:
    """Tracks of what an expression means; objects are named by their place in `mask_id`."""
    wanted = {str(name): str(place) for place, name in enumerate(row["mask_id"])}
    moments = {}
    for moment in row["frame_trajectories"]:
        found = [one for one in moment["points"] if str(one["id"]) in wanted]
        moments[moment["frame"]] = {wanted[str(one["id"])]: list(one["point"]) for one in found}
    masks = {str(place): seen for place, seen in enumerate(row["masks"].values())}
    known = {"video_id": row["video"], "numbered": list(wanted.values())}
    size = (row["width"], row["height"])
    video = f"videos/{row['video']}.mp4"
    return _tracks(row, row["expression"], moments, masks, size, video, known)


def _tracks(
    row: Row,
    label: str,
    moments: Mapping[int, Mapping[str, list[float]]],
    masks: Mapping[str, list[Any]],
    size: tuple[int, int],
    video: str,
    known: dict[str, Any],
) -> list[Item]:
    """The item of tracks by frame, with the mask of each object at each of its moments.

    Nothing may be there to track, as in the reference: then the right reply has no point.
    """
    frames = sorted(moments)  # a moment at which no object is there counts too
    seen = [
        {name: _mask(of_object, frame) for name, of_object in masks.items()} for frame in frames
    ]
    asked = annotation(
        STYLE,
        label=label,
        tracks=[{"time": frame / row["fps"], "points": dict(moments[frame])} for frame in frames],
        track_fps=float(TRACKED),
        masks=[{name: mask for name, mask in one.items() if mask is not None} for one in seen],
    )
    known |= {"example_id": str(row["id"]), "fps": float(row["fps"])}
    known |= {"width": size[0], "height": size[1], "objects": list(masks)}
    rates = {"frame_rates": dividing(row["fps"], TRACKED)}
    return [Item((Picture(path=video),), [asked], known, rates)]


def _mask(seen: Any, frame: int) -> dict[str, Any] | None:
    """An object's mask in a frame; lists whose entries name their frames have gaps."""
    named = next((one for one in seen if one is not None and "frame" in one), None)
    if named is not None:
        found = next((one["mask"] for one in seen if one and one["frame"] == frame), None)
    else:
        found = seen[frame] if frame < len(seen) else None
    return None if found is None else runs_of_coco(found)


_VIDEOS = "and the videos that its rows name into DIR/videos"
_EXPRESSIONS = (
    ("mevis", "allenai/molmo2-mevis (track, valid_u)"),
    ("ref_yt_vos", "allenai/molmo2-ref-yt-vos (track, valid)"),
    ("ref_davis17", "allenai/molmo2-ref-davis17 (track, valid)"),
    ("reasonvos", "allenai/molmo2-reasonvos (track, test)"),
)

SOURCES = [
    Source(
        "molmo2_video_count_eval",
        LICENCE,
        LAYOUT,
        count,
        {"val": "val"},
        read=read_places,
        by_hand=f"download the hub's allenai/Molmo2-VideoCountEval into DIR {_VIDEOS}",
    ),
    Source(
        "molmo2_video_point_eval",
        LICENCE,
        LAYOUT,
        points,
        {"val": "val"},
        read=read_places,
        by_hand=f"download the hub's allenai/Molmo2-VideoPointEval into DIR {_VIDEOS}",
    ),
    Source(
        "molmo2_video_track_eval",
        LICENCE,
        LAYOUT,
        track,
        {"test": "test"},
        read=read_hub,
        by_hand="download the hub's allenai/Molmo2-VideoTrackEval into DIR and each clip, as allenai/molmo2's download"
        " cuts it, as DIR/videos/VIDEO_DATASET/CLIP.mp4",
    ),
    *(
        Source(
            f"{name}_track_eval",
            LICENCE,
            LAYOUT,
            expression,
            {"test": "test"},
            read=read_expressions,
            by_hand=f"put the hub's {hub} and what allenai/molmo2's download makes of the set, MasksRLE/ and videos/,"
            " into DIR",
        )
        for name, hub in _EXPRESSIONS
    ),
]
