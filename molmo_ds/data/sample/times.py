"""Times at which the frames of a video are taken: a pure function of its duration and the settings.

Rules as of allenai/molmo2 (f3cb108, olmo/data/video_loader.py), whose end is included.
"""

from collections.abc import Sequence

import numpy as np

from molmo_ds.architecture import VideoConfig

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 16.0)  # frames per second that the mode fps tries
MOST_TRACKED = 10  # frames per second of a video with tracks


def frame_times(
    config: VideoConfig, duration: float, rates: Sequence[float] | None = None
) -> np.ndarray:
    """Seconds from the video's (or the clip's) beginning, float64 [n], 1 <= n <= max_frames, ascending.

    ValueError where the settings contradict each other.

    Args:
        rates: frames per second that may be taken, ascending, in place of the settings' rule and of RATES.
    """
    frames = config.max_frames
    if rates is not None or config.frame_sample_mode == "fps":
        times = np.arange(frames) / _rate(frames, duration, rates or RATES)
        return times[times < duration]
    if config.frame_sample_mode == "uniform":
        return np.linspace(0, duration, frames, endpoint=False)
    if config.max_fps is None or (frames - 1) / config.max_fps < duration:
        return np.linspace(0, duration, frames)
    # rounding may put a last step at the end itself; the reference stops there
    steps = np.arange(0.0, duration, 1 / config.max_fps)[: max(frames - 1, 0)]
    return np.append(steps, duration)


def frame_indices(
    config: VideoConfig, rate: float, count: int, rates: Sequence[float] | None = None
) -> np.ndarray:
    """Numbers of the frames to take, int64 [n], of `count` frames that were taken `rate` times a second.

    For videos that are kept as a list of pictures; frame i is shown at i / rate seconds. `rates` as of `frame_times`.
    """
    frames = min(config.max_frames, count)
    if rates is not None:
        step = max(1, round(rate / _rate(config.max_frames, count / rate, rates)))
        return np.arange(0, count, step)[: config.max_frames]
    if config.frame_sample_mode == "fps":
        chosen = np.arange(0, count, _step(config.max_frames, rate, count))
        return chosen[: config.max_frames]
    if config.frame_sample_mode == "uniform":
        return np.linspace(0, count, frames, endpoint=False, dtype=np.int64)
    if config.max_fps is None:
        return np.linspace(0, count - 1, frames, dtype=np.int64)
    if count <= 2:
        return np.arange(count)
    if count / rate > config.max_frames / config.max_fps - 1:
        return np.linspace(0, count - 1, frames, dtype=np.int64)
    steps = np.arange(0.0, count - 1, rate / config.max_fps)
    if np.round(steps[-1]) != count - 1:
        steps = np.append(steps, count - 1)
    if len(steps) > config.max_frames:  # only where that is 1; the reference stops there
        return np.linspace(0, count - 1, frames, dtype=np.int64)
    return np.round(steps).astype(np.int64)


def stamp(time: float) -> str:
    """A time as the text of a frame, a point and a subtitle: seconds with one decimal."""
    return f"{time:.1f}"


def dividing(rate: float, base: int) -> list[int]:
    """Multiples of `base` that divide a video's frames per second and are at most MOST_TRACKED, ascending.

    What a tracked video may be taken at: olmo/data/academic_video_track_datasets.py there. Empty where `base` does not
    divide the rate.
    """
    whole = int(rate)
    if whole <= 0 or whole % base:
        return []
    return [step for step in range(base, min(whole, MOST_TRACKED) + 1, base) if whole % step == 0]


def _rate(frames: int, duration: float, rates: Sequence[float]) -> float:
    """The highest of the rates at which the frames span the duration, or the lowest of all."""
    spanning = [rate for rate in rates[1:] if frames / rate >= duration]
    return spanning[-1] if spanning else rates[0]


def _step(frames: int, rate: float, count: int) -> int:
    """Frames from one taken frame to the next: the densest of RATES that spans all of them."""
    chosen = 1
    most = 0
    for wanted in RATES:
        step = max(int(rate / wanted), 1)
        if most == 0 or most < count // step <= frames:
            most = count // step
            chosen = step
    return chosen
