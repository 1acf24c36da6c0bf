"""Molmo2's own data about videos: captions, questions, questions about subtitles, points and tracks.

The sets hold annotations. Videos stay their owners': most are YouTube's and Vimeo's and are fetched by the user, who
puts them below the data set's folder as videos/VIDEO_ID.mp4 (tracks: videos/VIDEO_DATASET/CLIP.mp4). Layouts: the
loaders of allenai/molmo2 at f3cb108, olmo/data/molmo2_datasets.py and academic_video_track_datasets.py. Wrong answers
come in the order of the set and the right one at a place that depends on the question alone; there it is drawn.
"""

import math
from functools import partial
from typing import Any

from molmo_ds.data.sample.times import dividing
from molmo_ds.data.sources.source import Item, LeftOut, Picture, Row, Source, annotation, placed

LAYOUT = "allenai/molmo2, olmo/data/molmo2_datasets.py"
LICENCE = "not read*"
POINTS = (
    "action_or_event",
    "animal",
    "anomaly",
    "comparative reference",
    "indirect reference",
    "object",
    "referring expression",
    "spatial reference",
)
TRACKS = {
    "track": "video_point_track_per_frame",
    "ground": "video_point_ground_start_end",
    "single_point_track": "video_single_point_track_per_frame",
}
NAMES = {  # of the reference
    "track": "molmo2_video_track",
    "ground": "molmo2_video_track_ground",
    "single_point_track": "molmo2_video_single_point_track",
}
LONGEST = 63.0  # seconds of a clip with points, as the set was made
TRACKED_RATE = 6  # frames per second of a tracked video whose row does not say it
GRID = 0.5  # seconds between the times of points
CAPTIONS = {  # columns of captions, in the reference's order, and their styles
    "merged_caption": "video_merged_caption",
    "video_caption": "video_short_caption",
    "video_frame_merged_caption": "video_long_caption",
}
LEAST_SCORE = 3  # of captions that are learnt
DAMAGED = {
    *("0OfUqrbRa2Y", "mTXBQzptWAg", "NyuA4FatDQk", "a_"),
    *("gsfIHiBB6xE", "bXApJtAf6Qo", "N8BlpYSpgg4"),
}
DRAWN = ("video_point_count", "video_point")  # of which a visit takes one
BY_HAND = "the set's parquet files of the hub go into DIR/NAME, its videos into DIR/NAME/videos"
COUNTS = ((0, 5), (6, 25), (26, 60))  # points of an annotation, by which training is mixed


def _video(row: Row) -> tuple[Picture, ...]:
    return (Picture(path=f"videos/{row['video_id']}.mp4"),)


def _clip(begin: Any, end: Any) -> dict[str, Any]:
    return {} if begin is None or end is None else {"clip": [float(begin), float(end)]}


def cap(row: Row, split: str) -> list[Item]:
    """The captions of a video, or of the part of it that was described, of those that were judged good enough."""
    if row["annotation_score"] < LEAST_SCORE:
        raise LeftOut("caption with a low score")
    if row["video_id"] in DAMAGED:
        raise LeftOut("video that its publishers found damaged")
    said = [annotation(style, text=row[name]) for name, style in CAPTIONS.items() if row.get(name)]
    about = _clip(row.get("video_start"), row.get("video_end"))
    return [Item(_video(row), said, {"video_id": row["video_id"]}, about)] if said else []


def cap_eval(row: Row, split: str) -> list[Item]:
    """A video to be described; what people said of it goes into the metadata, as texts that reach the judge.

    A line of `statements` has its category in the same line of `statement_categories`.
    """
    statements = [" ".join(text.split()) for text in row["atomic_statements"]]
    categories = list(row["statement_categories"])
    if not statements or len(statements) != len(categories) or not all(statements):
        raise LeftOut("video without a category for every statement")
    about = _clip(row.get("video_start"), row.get("video_end"))
    name = "_".join(str(part) for part in (row["video_id"], *about.get("clip", ())))
    known = {"example_id": name, "video_id": row["video_id"], "source": row["source"]}
    known |= {
        "statements": "\n".join(statements),
        "statement_categories": "\n".join(categories),
        "description": row["aggregated_caption"],
    }
    asked = annotation("video_long_caption", text=row["aggregated_caption"])
    return [Item(_video(row), [asked], known, about)]


def ask_model_anything(row: Row, split: str) -> list[Item]:
    """A person's question and answer; an empty answer gives nothing."""
    answer = row["answer"].strip()
    if not answer:
        return []
    asked = annotation("user_qa", question=row["question"].strip(), answer=answer)
    return [Item(_video(row), [asked], {"video_id": row["video_id"]})]


def choices(row: Row, split: str, style: str = "video_multiple_choice") -> list[Item]:
    """A question with wrong answers; where the row has subtitles, they follow the video."""
    options, place = placed(row["Question"], row["Answer"], row["NegativeAnswers"])
    asked = annotation(style, question=row["Question"], options=options, answer_index=place)
    lines = [[line["start"], line["end"], line["text"]] for line in row.get("subtitle") or ()]
    metadata = {"video_id": row["video_id"], "category": row.get("Category")}
    return [Item(_video(row), [asked], metadata, {"subtitles": lines} if lines else {})]


def half_seconds(time: float) -> float:
    """The last half second at or before a time, which may be a rounding error short of it."""
    return GRID * math.floor(time / GRID + 1e-6)


def _clip_of_points(row: Row) -> tuple[float, float]:
    """(begin, end) of what is shown of a video with points: all of a short one; LeftOut as the reference does.

    Where there is nothing to point at, the reference wants a clip from the video's begin, as long as one may be.
    """
    begin = row.get("clip_start")
    end = row.get("clip_end")
    whole = row["video_duration"]
    if begin is not None and end is not None and end - begin > LONGEST:
        raise LeftOut(f"clip of more than {LONGEST:g} seconds")
    if whole <= LONGEST:
        begin = 0.0
        end = whole
    if begin is None or end is None:
        raise LeftOut(f"video of more than {LONGEST:g} seconds without a clip")
    if not 0 <= begin < end <= whole:
        raise LeftOut("clip without a length, or beyond the video's end")
    times = row["two_fps_timestamps"] or (0.0, min(whole, LONGEST))
    if min(times) < begin or max(times) > end:
        raise LeftOut("points outside of the clip, or a clip in which nothing is to be seen")
    return begin, end


def points(row: Row, split: str, styles: tuple[str, ...], count: tuple[int, int]) -> list[Item]:
    """Every place and time of something, in percent; times count from the clip's begin, in whole half seconds.

    Args:
        styles: of several one is drawn at each visit.
        count: the fewest and the most points.
    """
    least, most = count
    if not least <= row["count"] <= most:
        raise LeftOut(f"annotation with less than {least} or more than {most} points")
    begin, end = _clip_of_points(row)
    times = row["two_fps_timestamps"]
    groups = [
        {
            "time": half_seconds(time - begin),
            "points": [[one["x"], one["y"]] for one in frame],
        }
        for time, frame in zip(times, row["points"])
    ]
    asked = [
        annotation(
            style,
            label=row["label"],
            # the set's question asks how many
            question=None if style == "video_point" else row["question"],
            point_groups=groups if row["count"] else [],
            point_scale=100,
        )
        for style in styles
    ]
    metadata = {"video_id": row["video_id"], "category": row["category"], "count": row["count"]}
    said = asked if len(asked) == 1 else [{"one_of": asked}]
    return [Item(_video(row), said, metadata, _clip(begin, end))]


def track(row: Row, split: str, task: str, video: str = "") -> list[Item]:
    """The places of objects through a clip, in pixels; those outside of the expression are left out.

    How often a second they are asked for is drawn into the question, and so is the point that is followed.
    """
    if row.get("fps") and row["fps"] % row["sampling_fps"]:
        raise LeftOut("track at a rate that does not divide the video's")
    wanted = {str(one) for one in row["mask_id"]}
    tracks = []
    for moment in row["frame_trajectories"]:
        mine = [one for one in moment["points"] if str(one["id"]) in wanted]
        tracks.append(
            {
                "time": moment["time"],
                "points": {str(one["id"]): list(one["point"]) for one in mine},
                "hidden": [str(one["id"]) for one in mine if one["occluded"]],
            }
        )
    tracks.sort(key=lambda moment: moment["time"])
    asked = annotation(
        TRACKS[task],
        label=row["expression"],
        tracks=tracks,
        track_fps=row["sampling_fps"],
    )
    video = video or f"videos/{row['video_dataset']}/{row['clip']}.mp4"
    shown = (Picture(path=video),)
    rates = {"frame_rates": dividing(row.get("fps") or TRACKED_RATE, 1)}
    return [Item(shown, [asked], {"id": row["id"], "video": row["video"]}, rates)]


SOURCES = [
    Source(
        "molmo2_cap",
        LICENCE,
        LAYOUT,
        cap,
        {"train": "train"},
        "allenai/Molmo2-Cap",
        by_hand=BY_HAND,
    ),
    Source(
        "molmo2_cap_eval",
        LICENCE,
        LAYOUT,
        cap_eval,
        {"test": "test"},
        "allenai/Molmo2-CapEval",
        aliases=("vixmo_caps_eval2",),
        by_hand=BY_HAND,
    ),
    Source(
        "molmo2_ask_model_anything",
        LICENCE,
        LAYOUT,
        ask_model_anything,
        {"train": "HumanQA"},
        "allenai/Molmo2-AskModelAnything",
        group="video_id",
        by_hand=BY_HAND,
    ),
    Source(
        "molmo2_video_cap_qa",
        LICENCE,
        LAYOUT,
        choices,
        {"train": "CapQA"},
        "allenai/Molmo2-VideoCapQA",
        group="video_id",
        by_hand=BY_HAND,
    ),
    Source(
        "molmo2_video_subtitle_qa",
        LICENCE,
        LAYOUT,
        choices,
        {"train": "SubtitleQA"},
        "allenai/Molmo2-VideoSubtitleQA",
        group="video_id",
        by_hand=BY_HAND,
    ),
    *(
        Source(
            f"molmo2_{style}",
            LICENCE,
            LAYOUT,
            partial(points, styles=(style,), count=(0, 60)),
            {"train": "train"},
            "allenai/Molmo2-VideoPoint",
            POINTS,
            by_hand=BY_HAND,
        )
        for style in ("video_point", "video_point_count", "video_count", "video_count_point")
    ),
    *(
        Source(
            f"molmo2_video_point_minmax_{least}_{most}",
            LICENCE,
            LAYOUT,
            partial(points, styles=DRAWN, count=(least, most)),
            {"train": "train"},
            "allenai/Molmo2-VideoPoint",
            POINTS,
            aliases=(f"vixmo_points_minmax_{least}_{most}",),
            by_hand=BY_HAND,
        )
        for least, most in COUNTS
    ),
    *(
        Source(
            f"molmo2_{task}",
            LICENCE,
            LAYOUT,
            partial(track, task=task),
            {"train": "train"},
            "allenai/molmo2-track-instruction",
            (task,),
            aliases=(NAMES[task],),
            by_hand=BY_HAND,
        )
        for task in TRACKS
    ),
]
