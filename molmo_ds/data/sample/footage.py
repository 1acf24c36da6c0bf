"""The video of a record: which of its frames are shown, when, and with which subtitles."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from molmo_ds.architecture import VideoConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import shown
from molmo_ds.data.sample.record import MOST_FRAMES, Record
from molmo_ds.data.sample.times import frame_indices, frame_times, stamp
from molmo_ds.data.video import clip_duration, each_frame, video_size


@dataclasses.dataclass(frozen=True)
class Footage:
    """The frames of a video that are shown."""

    times: list[float]  # seconds from the beginning of the clip
    clip: tuple[float, float] | None  # seconds of the video; None = all of it
    numbers: list[int] | None = None  # of the pictures, where a video is kept as its frames

    def frames(self, record: Record) -> Iterator[np.ndarray]:
        """The frames of a record with `pixels` as they are decoded, where they are no pictures of their own.

        A frame that is shown again is the same array.
        """
        return each_frame(record["pixels"][0], self.times, self.clip)


def footage(record: Record, config: VideoConfig) -> Footage:
    """The frames to show of a record that holds a video.

    Raises BadSample where its keys hold what they must not, and ValueError where the index does not know the duration
    that decides the number of frames.
    """
    config = dataclasses.replace(config, max_frames=_most_frames(record, config))
    clip = _clip(record)
    if record.get("fps") is not None:
        return _of_pictures(record, config, clip)
    rates = _rates(record)
    duration = _duration(record, config)
    times = frame_times(config, clip_duration(duration, clip), rates)
    return Footage(times.tolist(), clip)


def check_footage(record: Record) -> float | None:
    """BadSample where no training could use the record's keys about its video; seconds of it, None where unknown."""
    config = VideoConfig()
    said = dataclasses.replace(config, max_frames=_most_frames(record, config))
    clip = _clip(record)
    _rates(record)
    duration = (record.get("durations") or [0.0])[0]
    if record.get("fps") is not None:
        _of_pictures(record, said, clip)
        duration = len(record["images"]) / record["fps"]
    subtitles(record, [], said.subtitle_seconds)
    return clip_duration(duration, clip) if duration > 0 else None


def subtitles(record: Record, times: list[float], seconds: float) -> str | None:
    """The text after the frames: subtitles that are spoken within `seconds` of one of them; None for none.

    `subtitles` of a record is a text, which is taken whole, or a list of [begin, end, text].
    """
    given = record.get("subtitles")
    if given is None or given in ("", []):
        return None
    if isinstance(given, str):
        return "subtitle\n" + given
    lines = ["subtitle\n"]
    for line in given if isinstance(given, list) else [given]:
        begin, end, text = _line(line)
        if any(end >= time - seconds and time + seconds >= begin for time in times):
            lines.append(f"{stamp(begin)} - {stamp(end)} {text}\n")
    return "".join(lines)


def _line(line: Any) -> tuple[float, float, str]:
    fits = isinstance(line, list) and len(line) == 3 and isinstance(line[2], str)
    # a line may begin before the clip
    if not fits or not _is_number(line[0]) or not _is_time(line[1]):
        raise BadSample(
            f"'subtitles' holds {shown(line)}, but must be a list of [begin, end, text]."
        )
    return float(line[0]), float(line[1]), line[2]


def _clip(record: Record) -> tuple[float, float] | None:
    clip = record.get("clip")
    if clip is None:
        return None
    if not isinstance(clip, list) or len(clip) != 2 or not all(_is_time(value) for value in clip):
        raise BadSample(f"'clip' is {shown(clip)}, but must be [begin, end] in seconds.")
    return float(clip[0]), float(clip[1])


def _rates(record: Record) -> list[float] | None:
    rates = record.get("frame_rates")
    if rates is None:
        return None
    fits = isinstance(rates, list) and rates and all(_is_time(rate) and rate > 0 for rate in rates)
    if not fits or sorted(rates) != rates:
        raise BadSample(
            f"'frame_rates' is {shown(rates)}, but must be frames per second, ascending and above 0."
        )
    return rates


def _is_time(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _most_frames(record: Record, config: VideoConfig) -> int:
    frames = record.get("num_frames")
    if frames is None:
        return config.max_frames
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= MOST_FRAMES:
        raise BadSample(
            f"num_frames is {frames!r}; it must be a whole number of at least 1 and at most {MOST_FRAMES}."
        )
    return frames


def _duration(record: Record, config: VideoConfig) -> float:
    duration = (record.get("durations") or [0.0])[0]
    if duration > 0:
        return duration
    if "pixels" in record:
        return video_size(record["pixels"][0]).duration
    counted = record.get("frame_rates") is not None or config.max_fps is not None
    if counted or config.frame_sample_mode == "fps":
        raise ValueError(
            f"The index does not know how long the video of sample '{record.get('__key__', '')}' is; index its folder"
            " again where the package av is installed: python tools/make_shards.py index FOLDER"
        )
    return (_clip(record) or (0.0, 1.0))[1]  # the number of frames does not depend on it


def _of_pictures(record: Record, config: VideoConfig, clip: tuple[float, float] | None) -> Footage:
    fps = record["fps"]
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < 1e6:
        raise BadSample(
            f"'fps' is {shown(fps)}, but must be pictures per second, a number above 0."
        )
    first = 0
    count = len(record["images"])
    if clip is not None:
        clip_duration(count / fps, clip)
        # 0.7 * 10 is more than 7, and 0.29 * 100 less than 29
        begin, end = (round(time * fps, 6) for time in clip)
        first = min(int(np.floor(begin)), count - 1)
        count = max(1, min(int(np.ceil(end)), count) - first)
    chosen = frame_indices(config, fps, count, _rates(record))
    return Footage((chosen / fps).tolist(), clip, (chosen + first).tolist())
