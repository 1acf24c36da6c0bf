"""The video proof's films say what they show, and its examination counts what it should."""

import json
from types import ModuleType

import numpy as np
import pytest

from molmo_ds.data.video import frames_at, video_size
from molmo_ds.testing.scripts import load


@pytest.fixture(scope="module")
def films() -> ModuleType:
    return load("examples/digits", "films", "compose")


@pytest.fixture(scope="module")
def video() -> ModuleType:
    return load("examples/digits", "video", "compose", "films")


def test_a_digit_is_there_when_it_is_said_to_be(films: ModuleType) -> None:
    """By the pixels: its row is brighter than the background, which is darker than any ink."""
    director = films.Director("heldout")
    for seed in range(6):
        frames, movers = director.film(np.random.default_rng(seed))
        for mover in movers:
            rows = slice(mover.row * films.CELL, (mover.row + 1) * films.CELL)
            for time in np.arange(0, films.SECONDS, films.STEP):
                frame = frames[round(time * films.RATE)]
                assert (frame[rows].max() > 150) == mover.shown(time)
                if mover.shown(time):
                    left, _ = mover.corner(time)
                    bright = np.flatnonzero((frame[rows] > 150).any(0))
                    assert left <= bright.min() and bright.max() < left + films.SIZE


def test_answers_follow_from_the_film(films: ModuleType) -> None:
    mover = films.Mover(digit=7, scan=0, row=1, appears=0.5, leaves=2.0, begin=0.0, speed=14)
    other = films.Mover(digit=3, scan=1, row=0, appears=0.0, leaves=1.5, begin=28.0, speed=-14)
    assert films.leaving([mover, other])["answer"] == "3"
    assert films.appearing(mover)["answer"] == "0.5"
    tracks = films.tracking(mover)["tracks"]
    assert [one["time"] for one in tracks] == [0.5, 1.0, 1.5]
    # 21 of 56 pixels at 0.5 s, 28 at 1 s and 35 at 1.5 s, to the nearest eighth
    assert [one["points"]["digit"] for one in tracks] == [[37.5, 75], [50.0, 75], [62.5, 75]]


def test_records_are_real_videos_of_their_split(films: ModuleType) -> None:
    (_, parts) = next(films.records("heldout", "examination", 1))
    record = json.loads(parts["json"])
    assert video_size(parts["mp4"]).duration == pytest.approx(2.5)
    assert frames_at(parts["mp4"], [0.0])[0].shape == (56, 56, 3)
    trained = set(films.compose.load_scans("train")[0].tolist())
    assert not trained & set(record["metadata"]["scans"])
    assert len(record["annotations"]) == 3


def test_scores(video: ModuleType) -> None:
    asked = {"answer": "1.0"}
    assert video.score(" 1.0", asked) == 1 and video.score("1.5", asked) == 0
    moments = [{"time": t, "points": {"digit": [50.0, 25.0]}} for t in (0.0, 0.5)]
    tracks = {"tracks": moments}
    right = '<tracks coords="0.0 1 500 250;0.5 1 600 250">7</tracks>'
    assert video.score(right, tracks) == 1
    assert video.score(right.replace("600", "700"), tracks) == 0.5
    late = right.replace(";0.5", ";1.0")  # one moment too many, one too few
    assert video.score(late, tracks) == pytest.approx(1 / 3)
    assert video.best_constant(["7", "7", "3"]) == pytest.approx(2 / 3)
    both = [json.dumps(moments), json.dumps(moments[:1])]
    assert video.best_constant(both) == 0.75
