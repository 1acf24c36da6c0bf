"""Times of frames and moments of tracks at edges that the goldens leave out."""

import numpy as np
import pytest

from molmo_ds.architecture import VideoConfig
from molmo_ds.data.sample.point_text import Moment, format_tracks
from molmo_ds.data.sample.times import frame_indices, frame_times


def test_rounding_adds_no_frame() -> None:
    """7 thirds of a second at 3 frames a second: seven steps and the end are 8; allenai/molmo2 f3cb108 stops there."""
    times = frame_times(VideoConfig(max_frames=8, max_fps=3.0), 7 / 3)
    assert times == pytest.approx(np.arange(8) / 3)
    assert (np.diff(times) > 0.3).all()


@pytest.mark.parametrize("most", [1, 2, 16])
def test_no_more_frames_than_asked_for(most: int) -> None:
    for count in (3, 4, 40):
        for rate in (0.5, 2.0, 30.0):
            config = VideoConfig(max_frames=most, max_fps=0.5)
            assert 1 <= len(frame_indices(config, rate, count)) <= most


def test_first_and_last_moments_at_one_time_are_one_group() -> None:
    """As allenai/molmo2 f3cb108, olmo/preprocessing/point_formatter.py, run: a later place of an object counts."""
    moments = [
        Moment(1.0, {"a": [50, 50]}),
        Moment(1.0, {"a": [60, 60], "b": [10, 20]}),
        Moment(2.0, {"b": [30, 40]}),
    ]
    text = format_tracks(moments, [100, 100], "ball", start_end_only=True)
    assert text == '<tracks coords="1.0 1 100 200 2 600 600;2.0 1 300 400">ball</tracks>'
