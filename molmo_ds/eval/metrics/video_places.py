"""Places in videos: points that must lie in an object's mask at their time, tracks by frame and as wholes, counts.

Source: allenai/molmo2 f3cb108, olmo/eval/evaluators.py (VixMoPointEval, VixMoPointCountEval) and
object_tracking_utils.py. There the masks of a frame are those of all objects of a track while its points are those of
the objects that are seen, so that a point may be compared with another object's mask; here each has its own. Figures
of tracks under `_reference` are made as there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from molmo_ds.data.sample.point_text import (
    NO_TRACKS,
    Point,
    format_groups,
    format_tracks,
    read_points,
    read_tracks,
)
from molmo_ds.data.sample.point_text import Moment as Written
from molmo_ds.data.sample.points import NONE
from molmo_ds.data.sample.times import stamp
from molmo_ds.eval.metrics.pointing import inside, nearest_pairs
from molmo_ds.eval.metrics.reply import whole_number
from molmo_ds.eval.metrics.tracks import Detections, hota
from molmo_ds.eval.row import Row, Scores

_TOTAL = re.compile(r"(?:a total of|the total number(?:\s+of\s+.+?)?\s+is:)\s*(\d+)")
_NONE = re.compile(r"\bnone\b")
NEAR = 0.05  # share of a count by which a close one may be off, besides 1
FAR = 100.0  # the largest of a normalised time, x or y
Place = tuple[float, float, float]  # seconds, x and y in pixels
# of a video with tracks: points found and wanted, and masks, by the object's name
Frame = tuple[Mapping[str, Point], Mapping[str, Point], Mapping[str, Any]]


def size_of(row: Row) -> tuple[float, float]:
    """Width and height to which the row's points refer, in pixels."""
    return row.metadata["width"], row.metadata["height"]


def true_places(row: Row) -> list[Place]:
    """One for each object."""
    groups = row.annotation["point_groups"]
    return [(group["time"], *group["points"][0]) for group in groups]


def score_places(reply: str, row: Row) -> Scores:
    """precision, recall and f1 of a video's points, paired by time and place so that the distances' sum is least."""
    wanted = true_places(row)
    given = [(one.place, one.x, one.y) for one in read_points(reply, *size_of(row))]
    unreadable = float(not given and bool(wanted) and not _NONE.search(reply.lower()))
    if not wanted:
        return dict.fromkeys(("precision", "recall", "f1"), float(not given)) | {"unreadable": 0.0}
    masks = [
        {time: mask for time, mask in seen if mask is not None} for seen in row.annotation["masks"]
    ]
    far = (row.metadata["video_duration"], *size_of(row))
    costs = [[math.dist(_normal(a, far), _normal(b, far)) for b in wanted] for a in given]
    hits = sum(
        given[i][0] in masks[j] and inside(given[i][1:], masks[j][given[i][0]])
        for i, j in (nearest_pairs(costs) if given else ())
    )
    return {**_rates(hits, len(given), len(wanted)), "unreadable": unreadable}


def _normal(place: Place, far: Sequence[float]) -> list[float]:
    return [round(FAR * value / most, 1) for value, most in zip(place, far)]


def _rates(hits: int, given: int, wanted: int) -> dict[str, float]:
    f1 = 2 * hits / (given + wanted) if hits else 0.0
    return {"precision": hits / max(given, 1), "recall": hits / wanted, "f1": f1}


def places_text(row: Row) -> str:
    """The true points as Molmo2 writes them."""
    groups = row.annotation["point_groups"]
    return format_groups(
        [stamp(group["time"]) for group in groups],
        [group["points"] for group in groups],
        [size_of(row)] * len(groups),
        row.annotation["label"],
        "point_count",
    )


def score_count(reply: str, row: Row) -> Scores:
    """`correct`, `close` (off by 1, and by a twentieth more), `valid`, and `correct` by subset and by bins of five."""
    count = row.metadata["count"]
    got = read_count(reply)
    correct = float(got == count)
    close = got is not None and abs(got - count) <= 1 + math.floor(NEAR * count)
    low = min(count // 5 * 5, 25)
    high = "" if low == 25 else f"_{low + 5}"
    return {
        "correct": correct,
        "close": float(close),
        "valid": float(got is not None),
        f"correct_{low}{high}": correct,
        f"acc_{row.metadata['subset']}": correct,
        "unreadable": float(got is None),
    }


def average_of_bins(means: Mapping[str, float]) -> dict[str, float]:
    """`per_category_average`: the plain mean over the bins of counts."""
    values = [value for name, value in sorted(means.items()) if name.startswith("correct_")]
    return {"per_category_average": math.fsum(values) / len(values)} if values else {}


def read_count(reply: str) -> int | None:
    """The whole reply as a number, or the number of a total; 0 for `none`, of which the reference never sees one."""
    text = reply.strip().lower().rstrip(".").strip()
    number = whole_number(text)
    if number is not None:
        return number
    total = _TOTAL.search(text)
    if total:
        return whole_number(total[1])
    return 0 if _NONE.search(text) else None


def score_tracks(reply: str, row: Row) -> Scores:
    """precision, recall and f1, means over frames, and HOTA with DetA and AssA; a point is right inside its mask.

    Each also under `_reference` where the record names the `objects` that have masks, in the order of those. All are 1
    where nothing is to be tracked and the reply has no point.
    """
    fps = row.metadata["fps"]
    # of two times that one frame shows, the later counts
    found = {round(one.time * fps): one.points for one in read_tracks(reply, *size_of(row))}
    moments = row.annotation["tracks"]
    frames = [round(moment["time"] * fps) for moment in moments]
    wanted = {frame: moment["points"] for frame, moment in zip(frames, moments)}
    masks = dict(zip(frames, row.annotation["masks"]))
    everything = sorted(found.keys() | wanted.keys())
    frames = [
        (found.get(frame, {}), wanted.get(frame, {}), masks.get(frame, {})) for frame in everything
    ]
    scores = _means(frames) | _of_objects(frames)
    objects = row.metadata.get("objects")
    if objects is not None:
        reference = _as_the_reference(frames, objects, row.metadata.get("numbered", objects))
        scores |= {f"{name}_reference": value for name, value in reference.items()}
    said = _NONE.search(reply.lower()) or NO_TRACKS in reply
    return {**scores, "unreadable": float(not found and not said)}


def _as_the_reference(
    frames: Sequence[Frame], objects: Sequence[str], numbered: Sequence[str]
) -> Scores:
    """The scores where the first point of a frame has the mask of the first of all `objects`, and so on.

    Its means over frames take a frame's points in the order in which they are published, HOTA in that of the objects'
    numbers.
    """
    order = {name: place for place, name in enumerate(numbered)}
    sorted_frames = [
        (found, dict(sorted(wanted.items(), key=lambda one: order.get(one[0], len(order)))), masks)
        for found, wanted, masks in frames
    ]
    return {
        **_means([_shifted(*frame, objects) for frame in frames], len(objects)),
        **_of_objects([_shifted(*frame, objects) for frame in sorted_frames]),
    }


def _shifted(
    found: Mapping[str, Point],
    wanted: Mapping[str, Point],
    masks: Mapping[str, Any],
    objects: Sequence[str],
) -> Frame:
    """A frame with the masks of `objects` for its points, in the order of both."""
    shifted = {name: masks[other] for name, other in zip(wanted, objects) if other in masks}
    return found, wanted, shifted


def _means(frames: Sequence[Frame], objects: int | None = None) -> Scores:
    """Means over frames; recall is of the objects that are wanted in a frame, or of so many `objects`."""
    rates = [_of_frame(*_compared(*frame), objects) for frame in frames]
    return {
        name: math.fsum(rate[name] for rate in rates) / len(rates) if rates else 1.0
        for name in ("precision", "recall", "f1")
    }


def _of_objects(frames: Sequence[Frame]) -> Scores:
    return hota([_compared(*frame)[0] for frame in frames])


def _compared(
    found: Mapping[str, Point], wanted: Mapping[str, Point], masks: Mapping[str, Any]
) -> tuple[Detections, list[tuple[int, int]]]:
    """A frame's detections, by name, and pairs (found, wanted) by least distance."""
    names = sorted(found)  # which of equally good matches is taken depends on the order
    right = [
        [name in masks and inside(found[other], masks[name]) for other in names] for name in wanted
    ]
    costs = [[math.dist(point, place) for place in wanted.values()] for point in found.values()]
    order = [names.index(name) for name in found]
    pairs = nearest_pairs(costs) if found and wanted else []
    return Detections(list(wanted), names, right), [(order[i], j) for i, j in pairs]


def _of_frame(
    frame: Detections, pairs: Sequence[tuple[int, int]], objects: int | None
) -> dict[str, float]:
    if not frame.wanted:
        return dict.fromkeys(("precision", "recall", "f1"), float(not frame.found))
    hits = sum(frame.right[j][i] for i, j in pairs)
    return _rates(hits, len(frame.found), objects or len(frame.wanted))


def tracks_text(row: Row) -> str:
    """The true tracks as Molmo2 writes them, of nothing that there is none."""
    moments = [Written(one["time"], one["points"]) for one in row.annotation["tracks"]]
    said = format_tracks(moments, size_of(row), row.annotation["label"])
    return NONE if said in ("", NO_TRACKS) else said
