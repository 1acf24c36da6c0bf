"""Rows as each set about videos publishes them, of a made-up film: the columns that the adapters of sources/ read."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from molmo_ds.data.made_up.film import MOMENTS, RATE, SECONDS, STEP, Film
from molmo_ds.data.made_up.scene import WORDS, Thing, absent
from molmo_ds.data.sources.molmo2 import COUNTS, TRACKS
from molmo_ds.data.sources.source import Row
from molmo_ds.data.sources.videos.academic_marks import ONE, SEVERAL

HALF = 8  # pixels from the middle of a thing to an edge that is inside of it
CLIP = 1.5  # seconds of a film of which only a part is shown
ASKED_RATE = 2  # moments a second of a track
EVALUATED_RATE = 1


@dataclass(frozen=True)
class Filmed:
    """One video, whose file is NUMBER.mp4 below the data set's folder."""

    number: int
    film: Film
    data: bytes

    @property
    def name(self) -> str:
        """As rows call it."""
        return str(self.number)

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.number}.mp4"

    @property
    def label(self) -> str:
        """A kind of thing that is there."""
        return next(iter(self.film.kinds()))

    def asked(self) -> list[tuple[str, str, list[str]]]:
        """Questions with a right answer and wrong ones."""
        scene = self.film.scene
        words = [word for word in WORDS if word != scene.word][:3]
        way = ["to the right", "to the left", "upwards", "it stands still"]
        return [
            (f"Where does the first {scene.things[0].label} move?", way[0], way[1:]),
            ("Which word is on the sign?", scene.word, words),
        ]


def captions(shown: Filmed) -> list[Row]:
    """Of every other film a part is described."""
    told = shown.film.caption()
    sign = f"A sign says {shown.film.scene.word}."
    row = {"video_id": shown.name, "annotation_score": 4, "merged_caption": f"{told} {sign}"}
    row |= {"video_caption": sign, "video_frame_merged_caption": told}
    part = bool(shown.number % 2)
    return [{**row, "video_start": 0.0 if part else None, "video_end": CLIP if part else None}]


def people_ask(shown: Filmed) -> list[Row]:
    return [{"video_id": shown.name, "question": q, "answer": a} for q, a, _ in shown.asked()]


def choices(shown: Filmed) -> list[Row]:
    return [
        {
            "video_id": shown.name,
            "Question": question,
            "Answer": answer,
            "NegativeAnswers": wrong,
            "Category": "made up",
        }
        for question, answer, wrong in shown.asked()
    ]


def subtitle_choices(shown: Filmed) -> list[Row]:
    said = [{"start": begin, "end": end, "text": text} for begin, end, text in _spoken(shown)]
    return [{**row, "subtitle": said} for row in choices(shown)]


def _spoken(shown: Filmed) -> list[tuple[float, float, str]]:
    scene = shown.film.scene
    return [(0.0, 0.8, f"the sign says {scene.word}"), (0.8, 2.0, f"and {scene.number}")]


def _first_sights(film: Film) -> dict[float, list[Thing]]:
    """The things by the moment at which they are first seen."""
    found: dict[float, list[Thing]] = {}
    for number in film.numbers:
        time = film.first_sight(number)
        found.setdefault(time, []).append(film.thing(number, time))
    return found


def points_of_things(film: Film) -> tuple[str, dict[float, list[dict[str, float]]]]:
    """Every thing once: up to five points."""
    return "thing", {
        time: [film.share(thing) for thing in things]
        for time, things in _first_sights(film).items()
    }


def points_of_sights(film: Film) -> tuple[str, dict[float, list[dict[str, float]]]]:
    """Every thing at each moment at which it is seen: 6 to 25 points."""
    return "sight of a thing", {
        time: [film.share(thing) for thing in film.seen(time).values()] for time in MOMENTS
    }


def points_of_corners(film: Film) -> tuple[str, dict[float, list[dict[str, float]]]]:
    """Four corners of every thing at three moments: 26 to 60 points."""
    corners = [*itertools.product((-HALF, HALF), repeat=2)]
    return "corner of a thing", {
        time: [
            film.share(thing, *corner) for thing in film.seen(time).values() for corner in corners
        ]
        for time in MOMENTS[:3]
    }


POINTS = {(0, 5): points_of_things, (6, 25): points_of_sights, (26, 60): points_of_corners}


def points(shown: Filmed, count: tuple[int, int]) -> list[Row]:
    """Of the fewest points also something that is not there."""
    rows = [_pointed(shown, *POINTS[count](shown.film))]
    if count[0] == 0:
        rows.append(_pointed(shown, absent(shown.film.kinds()), {}))
    return rows


def _pointed(shown: Filmed, label: str, moments: dict[float, list[dict[str, float]]]) -> Row:
    return {
        "video_id": shown.name,
        "video_duration": float(SECONDS),
        "clip_start": None,
        "clip_end": None,
        "label": label,
        "question": f"How many times is there a {label}?",
        "count": sum(map(len, moments.values())),
        "points": [*moments.values()],
        "two_fps_timestamps": [*moments],
        "category": "object",
    }


def academic_points(shown: Filmed) -> list[Row]:
    """Points in a clip that begins after half a second."""
    label, found = points_of_sights(shown.film)
    moments = {time: places for time, places in found.items() if time >= STEP}
    row = {"clip_start_time": STEP, "clip_end_time": float(SECONDS), "category": label}
    row |= {"count": sum(map(len, moments.values())), "video_name": shown.name, "subset": "made_up"}
    return [{**row, "timestamps": [*moments], "points": [*moments.values()]}]


def tracks(shown: Filmed, one: bool = False) -> list[Row]:
    """The things of the first kind, or the first thing alone, through the whole film."""
    film = shown.film
    wanted = film.kinds()[shown.label][:1] if one else film.kinds()[shown.label]
    moments = [
        {
            "frame": frame,
            "time": frame / RATE,
            "points": [_tracked(film, number, frame / RATE) for number in film.numbers],
        }
        for frame in range(0, RATE * SECONDS, RATE // ASKED_RATE)
    ]
    row = {
        "id": f"made-up-{shown.number}",
        "video": shown.name,
        "clip": shown.name,
        "video_dataset": "made_up",
        "expression": f"the {shown.label}",
        "mask_id": [str(number) for number in wanted],
        "fps": RATE,
        "sampling_fps": ASKED_RATE,
    }
    return [{**row, "frame_trajectories": moments}]


def _tracked(film: Film, number: int, time: float) -> dict[str, Any]:
    thing = film.thing(number, time)
    return {
        "id": str(number),
        "point": [float(thing.x), float(thing.y)],
        "occluded": not film.shown(number, time),
    }


def counts_to_evaluate(shown: Filmed) -> list[Row]:
    label = shown.label
    number = len(shown.film.kinds()[label])
    row = {"video_id": shown.name, "label": label, "count": number, "category": "object"}
    question = f'How many "{label}" are there in the video?'
    return [{**row, "question": question, "clip_start": None, "clip_end": None}]


def points_to_evaluate(shown: Filmed) -> list[Row]:
    """The first sight of each thing, with the masks of all its sights."""
    film = shown.film
    times = [film.first_sight(number) for number in film.numbers]
    masks = [
        [
            {"frame_id": round(time / STEP), "rle": _mask(film, number, time)}
            for time in MOMENTS
            if film.shown(number, time)
        ]
        for number in film.numbers
    ]
    places = [film.thing(number, time) for number, time in zip(film.numbers, times)]
    row = {"video_id": shown.name, "label": "thing", "two_fps_timestamps": times, "masks": masks}
    row |= {"video_duration": float(SECONDS), "width": film.scene.width}
    row["points"] = [{"x": float(thing.x), "y": float(thing.y)} for thing in places]
    return [{**row, "height": film.scene.height}]


def tracks_to_evaluate(shown: Filmed) -> list[Row]:
    film = shown.film
    wanted = film.kinds()[shown.label]
    times = [frame / RATE for frame in range(RATE * SECONDS)]
    points = []
    masks = []
    for number in wanted:
        things = [film.thing(number, time) if film.shown(number, time) else None for time in times]
        places = [None if thing is None else [float(thing.x), float(thing.y)] for thing in things]
        seen = [_mask(film, number, time) if film.shown(number, time) else None for time in times]
        points.append({"object_id": number, "points": places})
        masks.append({"object_id": number, "masks": seen})
    row = {"id": shown.name, "video_dataset": "made_up", "clip": shown.name, "fps": RATE}
    row |= {"exp": f"the {shown.label}", "mask_id": wanted, "points": points, "masks": masks}
    return [{**row, "w": film.scene.width, "h": film.scene.height}]


def _mask(film: Film, number: int, time: float) -> dict[str, Any]:
    """A square around a thing as COCO's tools list it, column by column."""
    scene = film.scene
    thing = film.thing(number, time)
    mask = np.zeros((scene.height, scene.width), bool)
    left, top = round(thing.x) - HALF, round(thing.y) - HALF
    mask[top : top + 2 * HALF, left : left + 2 * HALF] = True
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": [scene.height, scene.width], "counts": runs.tolist()}


def five_choices(shown: Filmed) -> list[Row]:
    question, answer, wrong = shown.asked()[0]
    options = [*wrong, answer, "in a circle"]
    columns = {f"a{number}": option for number, option in enumerate(options)}
    row = {"video": shown.name, "qid": 0, "type": "CH", "question": question, "answer": 3}
    return [{**row, **columns}]


def spoken_choices(shown: Filmed) -> list[Row]:
    """Four options with their letters, and subtitles."""
    _, answer, wrong = shown.asked()[1]
    options = [
        f"{letter}. {text}." for letter, text in zip("ABCD", [*wrong[:1], answer, *wrong[1:]])
    ]
    row = {"question_id": f"{shown.number}-1", "videoID": shown.name, "duration": "short"}
    row |= {"domain": "made up", "sub_category": "signs", "task_type": "OCR"}
    lines = [{"start": begin, "end": end, "text": text} for begin, end, text in _spoken(shown)]
    said = {str(number): line for number, line in enumerate(lines)}
    question = "Which word is on the sign?"
    return [{**row, "question": question, "options": options, "answer": "B", "subtitles": said}]


_ONE = functools.partial(tracks, one=True)
TRAIN: dict[str, Callable[[Filmed], list[Row]]] = {
    "molmo2_ask_model_anything": people_ask,
    "molmo2_cap": captions,
    "molmo2_video_cap_qa": choices,
    "molmo2_video_subtitle_qa": subtitle_choices,
    **{
        f"molmo2_video_point_minmax_{least}_{most}": functools.partial(points, count=(least, most))
        for least, most in COUNTS
    },
    "academic_points_clip_63s_2fps": academic_points,
    **{f"molmo2_{task}": _ONE if "single" in task else tracks for task in TRACKS},
    **{
        f"{name}_{task}": _ONE if "single" in task else tracks
        for name, (_, tasks) in SEVERAL.items()
        for task in tasks
    },
    **{f"{name}_single_point_track": _ONE for name in ONE},
}
EVALUATED: dict[tuple[str, str], Callable[[Filmed], list[Row]]] = {  # (data set, split)
    ("molmo2_video_count_eval", "val"): counts_to_evaluate,
    ("molmo2_video_point_eval", "val"): points_to_evaluate,
    ("molmo2_video_track_eval", "test"): tracks_to_evaluate,
    ("nextqa_mc", "test"): five_choices,
    ("video_mme_w_subtitle", "validation"): spoken_choices,
}
