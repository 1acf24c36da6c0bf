"""Points, groups of points and tracks of an annotation as the text of an answer, in the format of the family."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import RandomState

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import INLINE_POINT, Annotation, PointGroup, TrackPoints
from molmo_ds.data.sample.point_text import Moment, format_groups, format_tracks
from molmo_ds.data.sample.points import NONE, format_count, format_points, to_percent
from molmo_ds.data.sample.styles import ENDS_ONLY, MODES, SAME_AS
from molmo_ds.data.sample.times import stamp

NEAR = 1e-2  # seconds from a track's time to the frame that shows it
P_ANY_START = 0.2  # a track of one point begins in training anywhere, else where it is first seen


@dataclass(frozen=True)
class Scene:
    """What points refer to: pictures, or the frames of one video."""

    sizes: Sequence[
        tuple[int, int]
    ]  # (width, height) of each picture, or of the video; empty for none
    # seconds of the frames that are shown, ascending; None for pictures
    times: Sequence[float] | None = None

    def scale(self, given: float | None, picture: int = 1) -> tuple[float, float]:
        """The values of x and y at the far edges: as the annotation says, or pixels of a picture, from 1."""
        if given is not None:
            return given, given
        if not 1 <= picture <= len(self.sizes) or 0 in self.sizes[picture - 1]:
            raise BadSample(
                "Points in pixels need the picture's size; give point_scale for a sample without one."
            )
        return self.sizes[picture - 1]


def holds_points(annotation: Annotation) -> bool:
    """Whether points are what is to be answered."""
    given = (annotation.points, annotation.point_groups, annotation.tracks)
    return any(one is not None for one in given)


def answer_by_points(
    style: str, annotation: Annotation, label: str, scene: Scene, pointing_format: str
) -> str:
    """The answer of an annotation that `holds_points`.

    Raises BadSample where the format cannot say it, and for points outside of the picture.
    """
    if pointing_format == "percent":
        return _in_percent(style, annotation, label, scene)
    if annotation.tracks is not None:
        return _tracks(style, annotation, label, scene, pointing_format)
    mode = MODES.get(style)
    if annotation.point_groups is None:
        scale = scene.scale(annotation.point_scale)
        groups = [annotation.points]
        return format_groups(["1"], groups, [scale], label, mode, None, pointing_format)
    groups = annotation.point_groups
    return format_groups(
        [_place(group) for group in groups],
        [group.points for group in groups],
        [scene.scale(annotation.point_scale, group.image or 1) for group in groups],
        label,
        mode,
        None,
        pointing_format,
    )


def place_points(annotation: Annotation, scene: Scene, pointing_format: str) -> str:
    """The answer with its points in place of each `<|POINT|>`."""
    groups = annotation.inline_points or []
    parts = (annotation.answer or "").split(INLINE_POINT)
    if len(parts) != len(groups) + 1:
        raise BadSample(
            f"The answer has {len(parts) - 1} {INLINE_POINT} and inline_points {len(groups)} entries."
        )
    out = parts[0]
    for group, after in zip(groups, parts[1:]):
        text = group.alt if group.text is None else group.text
        if pointing_format == "percent":
            size = scene.sizes[0] if scene.sizes else None
            points = to_percent(group.points, annotation.point_scale, size)
            out += format_points(points, group.alt, text)
        else:
            scale = scene.scale(annotation.point_scale)
            out += format_groups(
                ["1"], [group.points], [scale], text, None, group.alt, pointing_format
            )
        out += after
    return out


def _in_percent(style: str, annotation: Annotation, label: str, scene: Scene) -> str:
    if annotation.points is None:
        raise BadSample(
            "point_groups and tracks need data.prompts.pointing_format=html-v2; Molmo's own points know one picture."
        )
    size = scene.sizes[0] if scene.sizes else None
    points = to_percent(annotation.points, annotation.point_scale, size)
    return format_count(points, label) if style == "point_count" else format_points(points, label)


def _place(group: PointGroup) -> str:
    if (group.image is None) == (group.time is None):
        raise BadSample("A group of points has an 'image' (from 1) or a 'time', and not both.")
    return str(group.image) if group.time is None else stamp(group.time)


def _tracks(
    style: str, annotation: Annotation, label: str, scene: Scene, pointing_format: str
) -> str:
    """Tracks at the times of frames that are shown; of an object that is nowhere, that there is none."""
    if not annotation.tracks:
        return NONE
    # of all frames that are shown: an object may come between two of the rate
    ends_only = style in ENDS_ONLY
    moments = _moments(annotation, scene, None if ends_only else annotation.track_fps)
    scale = scene.scale(annotation.point_scale)
    return format_tracks(moments, scale, label, ends_only, pointing_format)


def unshown(annotation: Annotation, scene: Scene) -> int:
    """Moments of an annotation's tracks that its answer leaves out, because no frame is shown then."""
    ends_only = SAME_AS.get(annotation.style, annotation.style) in ENDS_ONLY
    fps = None if ends_only else annotation.track_fps
    asked = _moments(annotation, Scene(scene.sizes), fps)
    return len(asked) - len(_moments(annotation, scene, fps))


def _moments(annotation: Annotation, scene: Scene, fps: float | None) -> list[Moment]:
    """The moments of a track at which a frame is shown, of those that lie on a grid of `fps`."""
    kept = [moment for moment in annotation.tracks or () if _is_shown(moment, scene)]
    if fps is not None:
        kept = [moment for moment in kept if _on_grid(moment.time, fps)]
    return [Moment(moment.time, moment.points, moment.hidden) for moment in kept]


def follow_point(
    annotation: Annotation,
    label: str,
    scene: Scene,
    pointing_format: str,
    rng: RandomState | None = None,
) -> tuple[str, str]:
    """(a point, the track of its object after it), both as text; BadSample where the object is never seen.

    The point is the first that is seen in a frame that is shown, or with `rng` sometimes any. Source: allenai/molmo2 at
    f3cb108, olmo/preprocessing/data_formatter.py, whose objects of one annotation are always one.
    """
    seen = _sights(_moments(annotation, scene, None))
    if not seen:  # the frames that are shown lie between those that were tracked
        seen = _sights(_moments(annotation, Scene(scene.sizes), None))
    if not seen:
        raise BadSample(
            "A track of a point needs an object that is seen; leave the annotation out."
        )
    anywhere = rng is not None and rng.random_sample() < P_ANY_START
    time, name, point = seen[rng.randint(len(seen))] if rng is not None and anywhere else seen[0]
    scale = scene.scale(annotation.point_scale)
    start = format_groups([stamp(time)], [[point]], [scale], label, None, None, pointing_format)
    after = [
        Moment(moment.time, {name: moment.points[name]}, moment.hidden)
        for moment in _moments(annotation, scene, annotation.track_fps)
        if moment.time > time and name in moment.points
    ]
    return start, format_tracks(after, scale, label, False, pointing_format)


def _sights(moments: Sequence[Moment]) -> list[tuple[float, int | str, Sequence[float]]]:
    """(time, object, point) of all that is seen."""
    return [
        (moment.time, name, point)
        for moment in moments
        for name, point in moment.points.items()
        if name not in moment.hidden
    ]


def _is_shown(moment: TrackPoints, scene: Scene) -> bool:
    if scene.times is None:
        return True
    after = bisect_left(scene.times, moment.time)
    nearest = scene.times[max(0, after - 1) : after + 1]
    return any(abs(moment.time - time) < NEAR for time in nearest)


def _on_grid(time: float, fps: float) -> bool:
    return abs(time - round(time * fps) / fps) < NEAR
