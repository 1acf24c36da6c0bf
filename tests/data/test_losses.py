"""What samples lose is counted and said: frames that come again, moments without a frame, the sum over all ranks."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState
from test_footage import ASK, TRACK, config, sample

from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.order import losses
from molmo_ds.data.order.loader import Steps, build_stream
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.annotation import read_annotation
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.pointed import NEAR, Scene, unshown
from molmo_ds.data.sample.review import Review
from molmo_ds.engine.launch import World
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.small_videos import png


def lost(tmp_path: Path, made: tuple[str, dict], *settings: str) -> dict[str, int]:
    """What the builder says of one sample that was written to shards."""
    write_shards([made], tmp_path / "one")
    builder = SampleBuilder(config(*settings))
    builder.build(ShardSet(str(tmp_path / "one")).read(0), RandomState(0))
    return builder.lost


UNIFORM = "model.video.frame_sample_mode=uniform"
# films of 8 frames a second, of which frame floor(8 t) is shown at t; times are multiples of duration / max_frames.
# A clip leaves out the last frame, since a film does not say how long it is shown
REPEATS = {
    "3 frames, 8 times": (3, 8, 5),  # 0 0 0 1 1 1 2 2
    "8 frames, 8 times": (8, 8, 0),
    "20 frames, 8 times": (20, 8, 0),
    "5 frames, 6 times": (5, 6, 1),  # 0 0 1 2 3 4
    "1 frame, 4 times": (1, 4, 3),
}


@pytest.mark.parametrize("case", REPEATS)
def test_frames_that_come_again_are_counted(tmp_path: Path, case: str) -> None:
    frames, most, expected = REPEATS[case]
    settings = [UNIFORM, "model.video.max_fps=null", f"model.video.max_frames={most}"]
    film = sample("v", ASK, frames + 1, clip=[0, frames / 8])
    found = lost(tmp_path, film, *settings)
    assert found == {"tokens": 0, "frames": expected, "moments": 0}


def test_pictures_taken_faster_than_they_were_made_come_again(tmp_path: Path) -> None:
    # steps of half a picture, rounded to the even: 0 0 1 2 2 2 3, then the last, as the reference takes them
    parts = {f"{i}.png": png(10 * i) for i in range(4)}
    record = {"images": list(parts), "annotations": [ASK], "fps": 1.0}
    made = "p", parts | {"json": json.dumps(record).encode()}
    found = lost(tmp_path, made, "model.video.max_fps=2", "model.video.max_frames=16")
    assert found["frames"] == 3


def test_a_picture_after_a_video_has_no_frames(tmp_path: Path) -> None:
    record = {"images": ["png"], "annotations": [{"style": "user_qa", "text": "A"}]}
    picture = "q", {"png": png(3), "json": json.dumps(record).encode()}
    write_shards([sample("v", ASK, 3), picture], tmp_path / "two")
    shards = ShardSet(str(tmp_path / "two"))
    builder = SampleBuilder(config())
    for index in range(2):
        builder.build(shards.read(index), RandomState(0))
    assert not builder.lost.get("frames")


MOMENTS = {  # times of TRACK: 0, 0.3, 0.5, 2.5; frames at 0, 0.5, ... 2.5
    "all of them asked for": (TRACK, 1),
    "on a grid that has no 0.3": (TRACK | {"track_fps": 2}, 0),
    "on a grid of which no frame shows a part": (TRACK | {"track_fps": 10}, 1),
    "ends only": (TRACK | {"style": "video_point_track_start_end"}, 1),
    "nothing tracked": (ASK, 0),
}


@pytest.mark.parametrize("case", MOMENTS)
def test_moments_without_a_frame_are_counted(tmp_path: Path, case: str) -> None:
    annotation, expected = MOMENTS[case]
    settings = ["model.video.max_fps=2", "model.video.max_frames=16"]
    film = sample("v", annotation, 22, clip=[0, 2.5])
    assert lost(tmp_path, film, *settings)["moments"] == expected


def test_a_run_says_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(
        [sample(f"v{i}", TRACK, 4, clip=[0, 3 / 8]) for i in range(4)], tmp_path / "shards"
    )
    run = config("data.num_workers=0", UNIFORM, "model.video.max_fps=null")
    sources = {"films": SourceConfig(path=str(tmp_path / "shards"))}
    stream = build_stream(with_sources(run, sources), 0, 1)
    for _ in range(3):
        _, states = next(stream)
    stream.close()
    counts = losses.totals(states)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    # 3 frames at 8 times: 5 come again; of the moments 0.3, 0.5 and 2.5 no frame is near
    samples = counts["repeating_samples"]
    assert samples > 0 and counts["repeated_frames"] == 5 * samples
    assert counts["unshown_samples"] == samples and counts["unshown_moments"] == 3 * samples
    assert said[-2:] == [
        f"In all, {samples} of {counts['seen']} samples are videos with fewer frames than were taken, "
        f"{5 * samples} of which were shown again.",
        f"In all, {samples} of {counts['seen']} samples lost {3 * samples} moments of their tracks, "
        "at which no frame is shown.",
    ]


def with_sources(run: RunConfig, sources: dict[str, SourceConfig]) -> RunConfig:
    return replace(run, data=replace(run.data, sources=sources))


def said_at_the_end(world: World, copies: int) -> list[str]:
    """What one rank logs of lanes that lost its number of samples, where `copies` ranks read the same lanes."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logging.getLogger("molmo_ds").addHandler(Kept())
    place = world.rank // copies
    state: dict[str, Any] = {
        "seen": 10,
        "bad": place,
        "cut_samples": place,
        "cut_tokens": 100 * place,
    }
    stream = Steps(config("data.num_workers=0"), iter(()), range(place, place + 1))
    stream.states = {place: state}
    stream.close(partial(world.total, copies=copies))
    return said


@pytest.mark.parametrize(("ranks", "copies"), [(2, 1), (4, 2)])
def test_the_first_rank_says_what_all_lanes_lost(ranks: int, copies: int) -> None:
    # lanes 0 and 1: the second alone skipped a sample and cut one, by 100 tokens
    assert run_ranks(said_at_the_end, ranks, copies)[0] == [
        "In all, 1 of 20 samples were skipped.",
        "In all, 1 of 20 samples were cut at data.sequence_length=256 and lost 100 tokens.",
    ]


def test_moments_after_the_end_are_told_where_data_comes_in() -> None:
    record = {"images": ["mp4"], "sizes": [(48, 32)], "annotations": [TRACK]}
    review = Review()
    for end in (2.5, 0.4, 0.0):  # of TRACK's moments 0, 0.3, 0.5 and 2.5; 0 = unknown
        review.add(record | {"durations": [end]})
    review.add(record | {"durations": [9.0], "clip": [1.0, 1.2]})  # times of a clip begin at 0
    assert review.outside == 0 + 2 + 0 + 3
    assert review.sentences() == [
        "5 moments of tracks after the end of their video, at which no frame can be shown"
    ]


def test_a_moment_is_shown_by_the_frame_next_to_it() -> None:
    """As if every frame were looked at, also where two are shown within a hundredth of a second."""
    rng = RandomState(3)
    seen = set()
    for _ in range(300):
        times = np.sort(rng.randint(0, 120, 20) / 200).tolist()
        moments = [{"time": time / 400, "points": {"a": [1, 1]}} for time in range(240)]
        annotation = read_annotation({"style": "x", "label": "x", "tracks": moments})
        wanted = sum(all(abs(one["time"] - time) >= NEAR for time in times) for one in moments)
        assert unshown(annotation, Scene([(9, 9)], times)) == wanted
        seen.add(wanted)
    assert len(seen) > 20
