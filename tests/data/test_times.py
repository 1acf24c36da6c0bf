"""Times of frames and moments of tracks at edges that the goldens leave out."""

import numpy as np
import pytest

from molmo_ds.architecture import VideoConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.footage import footage
from molmo_ds.data.sample.point_text import Moment, format_tracks
from molmo_ds.data.sample.times import dividing, frame_indices, frame_times


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


def test_rates_of_a_tracked_video() -> None:
    """As allenai/molmo2 f3cb108, get_candidate_sampling_fps and TimeSampler, run on the same numbers."""
    assert dividing(30.0, 1) == [1, 2, 3, 5, 6, 10] and dividing(30.0, 2) == [2, 6, 10]
    assert dividing(29.97, 1) == [1] and dividing(6.0, 1) == [1, 2, 3, 6]
    assert dividing(25.0, 2) == [] and dividing(0.5, 1) == []


def test_frames_lie_on_the_grid_of_a_rate() -> None:
    """8 frames span 3 seconds at 2 a second and not at 3; 9 seconds not at 1, and the rest is not seen."""
    config = VideoConfig(max_frames=8, max_fps=2.0)
    rates = [1, 2, 3, 6]
    assert frame_times(config, 3.0, rates).tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert frame_times(config, 9.0, rates).tolist() == list(range(8))
    # at 6 a second 1.3 seconds begin 8 frames, the last at 7 / 6
    assert frame_times(config, 1.3, rates) == pytest.approx(np.arange(8) / 6)
    assert frame_indices(config, 6.0, 18, rates).tolist() == [0, 3, 6, 9, 12, 15]
    film = {"__key__": "k", "images": ["mp4"], "durations": [3.0], "frame_rates": rates}
    assert footage(film, config).times == [0, 0.5, 1, 1.5, 2, 2.5]
    assert footage({**film, "frame_rates": None}, config).times[-1] == 3.0
    for wrong in ([], [2, 1], [0, 1], "6", [True]):
        with pytest.raises(BadSample, match="'frame_rates' is .* ascending and above 0"):
            footage({**film, "frame_rates": wrong}, config)


def test_first_and_last_moments_at_one_time_are_one_group() -> None:
    """As allenai/molmo2 f3cb108, olmo/preprocessing/point_formatter.py, run: a later place of an object counts."""
    moments = [
        Moment(1.0, {"a": [50, 50]}),
        Moment(1.0, {"a": [60, 60], "b": [10, 20]}),
        Moment(2.0, {"b": [30, 40]}),
    ]
    text = format_tracks(moments, [100, 100], "ball", start_end_only=True)
    assert text == '<tracks coords="1.0 1 100 200 2 600 600;2.0 1 300 400">ball</tracks>'
