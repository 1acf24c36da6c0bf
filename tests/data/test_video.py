"""Frames of real videos, written here by the package `av`."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from molmo_ds.data.decode import BadSample
from molmo_ds.data.video import _Clock, clip_duration, frames_at, video_size
from molmo_ds.testing.small_videos import film

EVEN = film([125 * i for i in range(20)])
UNEVEN = [0, 100, 130, 500, 510, 520, 900, 1000, 1400, 1450, 1460, 2000]


def numbers(frames: list[np.ndarray]) -> list[int]:
    """The frames' numbers by their greys; the codec is lossy."""
    assert all(frame.shape == (32, 48, 3) and frame.dtype == np.uint8 for frame in frames)
    return [round(float(frame.mean()) / 10) for frame in frames]


def test_a_frame_is_shown_until_it_ends() -> None:
    times = [0.0, 0.1249, 0.125, 0.3, 1.0, 0.5]
    assert numbers(frames_at(EVEN, times)) == [0, 0, 1, 2, 8, 4]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("key_every", [1, 4, 100])
def test_frames_of_uneven_length(key_every: int, codec: str) -> None:
    """By brute force: the last frame that has begun, wherever key frames lie and in whatever order frames are coded."""
    data = film(UNEVEN, key_every, codec)
    times = [0.0, 0.05, 0.1, 0.129, 0.13, 0.505, 0.95, 1.455, 1.999, 2.0, 5.0]
    begun = [sum(begin <= time * 1000 + 1e-3 for begin in UNEVEN) - 1 for time in times]
    assert numbers(frames_at(data, times)) == begun


@pytest.mark.parametrize("unit", [(1, 600), (1, 19200), (1001, 30000), (1, 12800), (1, 90000)])
def test_a_frame_that_begins_when_it_is_asked_for_is_shown(unit: tuple[int, int]) -> None:
    """Half seconds that are whole ticks: 1 / 600 as a float is a little more, and the frame before would be shown."""
    halves = [Fraction(k, 2) / Fraction(*unit) for k in range(4000)]
    ticks = np.array([int(tick) for tick in halves if tick.denominator == 1])
    clock = _Clock(ticks, ticks[:1], int(ticks[-1]) + 1, unit)
    times = [float(tick * Fraction(*unit)) for tick in ticks.tolist()]
    assert clock.shown(times[1:-1]).tolist() == list(range(1, len(ticks) - 1))


def test_the_end_is_the_last_frame_and_a_clip_begins_at_0() -> None:
    duration = video_size(EVEN).duration
    assert (video_size(EVEN).width, video_size(EVEN).height) == (48, 32)
    assert numbers(frames_at(EVEN, [duration])) == [19]
    assert numbers(frames_at(EVEN, [0.0, 0.5], clip=(1.0, 1.6))) == [8, 12]
    assert clip_duration(2.5, (1.0, 9.0)) == 1.5 and clip_duration(2.5, None) == 2.5
    for clip in ((3.0, 4.0), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(BadSample, match="shows nothing"):
            clip_duration(2.5, clip)


def test_a_list_of_files_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libav would open the files that it names in the working folder of a server."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mpegts") as file:
        track = file.add_stream("mpeg4", rate=8)
        track.width, track.height, track.pix_fmt = 48, 32, "yuv420p"
        file.mux(track.encode(av.VideoFrame(48, 32, "yuv420p")))
        file.mux(track.encode())
    (tmp_path / "secret.ts").write_bytes(stream.getvalue())
    monkeypatch.chdir(tmp_path)
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "JPEG")
    listed = b"ffconcat version 1.0\nfile secret.ts\n"
    for data in (listed, b"#EXTM3U\nsecret.ts\n", picture.getvalue(), b"hello", b""):
        with pytest.raises(BadSample, match="as neither MP4, WebM nor GIF does"):
            video_size(data)


def test_a_gif_is_a_video() -> None:
    pictures = [Image.fromarray(np.full((32, 48, 3), 20 * i, np.uint8)) for i in range(4)]
    out = io.BytesIO()
    pictures[0].save(
        out, "GIF", save_all=True, append_images=pictures[1:], duration=[100, 300, 50, 200]
    )
    frames = frames_at(out.getvalue(), [0.05, 0.1, 0.39, 0.42, 0.6])
    assert [round(float(frame.mean()) / 20) for frame in frames] == [0, 1, 1, 2, 3]
    assert video_size(out.getvalue()).duration == pytest.approx(0.65)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_cut_file_is_a_bad_sample(share: float) -> None:
    data = EVEN[: int(len(EVEN) * share)]
    with pytest.raises(BadSample, match="video"):
        frames_at(data, [0.0, 1.0])
    with pytest.raises(BadSample, match="video"):
        video_size(data)
