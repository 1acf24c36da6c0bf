"""Frames of an encoded video at exact times: one decoding pass that seeks only where it saves whole groups of pictures.

The clock of a video is made of its packets, which costs no decoding: when each frame is shown, and which are key
frames. Between two wanted frames the decoder goes on; where another key frame lies between them it jumps there. What is
shown at a time t is the first frame that ends after t, as in torchcodec's exact mode, which Molmo2 was trained with
(allenai/molmo2 at f3cb108, olmo/data/video_loader.py). GIFs are read the same way.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from molmo_ds.data.decode import BadSample

# brands of pictures whose files look like an MP4's
STILLS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
MATROSKA = b"\x1aE\xdf\xa3"  # of WebM
INSIDE = 1e-6  # seconds by which a time is kept from both ends of the stream


@dataclass(frozen=True)
class VideoSize:
    """What must be known of a video before it is decoded."""

    width: int  # as shown, in pixels
    height: int
    duration: float  # seconds


@dataclass(frozen=True)
class _Clock:
    """When the frames of a video are shown, in its own clock."""

    ticks: np.ndarray  # int64 [n], when each frame begins, ascending
    keys: np.ndarray  # int64, of them those that are key frames
    end: int  # when the last frame ends
    unit: tuple[int, int]  # seconds of a tick, as a fraction

    @property
    def duration(self) -> float:
        """Seconds from the first frame's beginning to the last one's end."""
        return float(self.seconds(self.end)) - self.begin

    @property
    def begin(self) -> float:
        """Seconds at which the first frame begins."""
        return float(self.seconds(self.ticks[0]))

    def seconds(self, ticks: np.ndarray | int) -> np.ndarray:
        """Ticks as float64 seconds: one rounding, or a frame that begins at 1.5 s would begin after it."""
        above, below = self.unit
        return np.asarray(ticks, np.float64) * above / below

    def shown(self, times: Sequence[float]) -> np.ndarray:
        """int64, the frames that are shown at `times`, seconds in the stream's clock."""
        first = self.begin + INSIDE
        last = float(self.seconds(self.end)) - INSIDE
        inside = [max(first, min(last, float(time))) for time in times]
        return np.searchsorted(self.seconds(self.ticks[1:]), inside, side="right")


def film_kind(data: bytes) -> str | None:
    """mp4 or webm, as shards call it, by the first bytes; None for what is no video."""
    if data[4:8] == b"ftyp" and data[8:12] not in STILLS:
        return "mp4"
    return "webm" if data[:4] == MATROSKA else None


def video_size(data: bytes) -> VideoSize:
    """Size and duration of an encoded video.

    Raises BadSample where it holds no frame that can be decoded, ValueError where the package av is missing.
    """
    with _opened(data) as (container, stream):
        clock = _clock(container, stream)
        _, pixels = next(_decode(container, stream, clock, [0]), (0, None))
        if pixels is None:
            raise BadSample("The video has no frame.")
        return VideoSize(pixels.shape[1], pixels.shape[0], clock.duration)


def frames_at(
    data: bytes, times: Sequence[float], clip: tuple[float, float] | None = None
) -> list[np.ndarray]:
    """The frames shown `times` seconds after the beginning of a video, or of its clip: uint8 [height, width, 3] each.

    Raises BadSample where the video cannot be decoded, ValueError where the package av is missing.
    """
    order = sorted({float(time) for time in times})
    decoded = dict(zip(order, each_frame(data, order, clip)))
    return [decoded[float(time)] for time in times]


def each_frame(
    data: bytes, times: Sequence[float], clip: tuple[float, float] | None = None
) -> Iterator[np.ndarray]:
    """The frames of `frames_at` one by one as they are decoded, so that few are held; `times` must ascend.

    Where one frame is shown at several times, the same array comes again.
    """
    with _opened(data) as (container, stream):
        clock = _clock(container, stream)
        begin = clock.begin + (clip[0] if clip is not None else 0.0)
        wanted = clock.shown([begin + float(time) for time in times]).tolist()
        decoded = _decode(container, stream, clock, sorted(set(wanted)))
        number = None
        for one in wanted:
            if number != one:
                number, frame = next(decoded, (None, None))
            if number != one:
                raise BadSample(f"The video ends before its frame {one}, which its index lists.")
            yield frame


def clip_duration(duration: float, clip: tuple[float, float] | None) -> float:
    """Seconds of a clip (begin, end) of a video; BadSample for a clip that is empty or begins after its end."""
    if clip is None:
        return duration
    begin, end = clip
    if not 0 <= begin < min(end, duration):
        raise BadSample(
            f"The clip {list(clip)} shows nothing of a video of {duration:.3f} seconds; mend its begin and end."
        )
    return min(end, duration) - begin


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    """An open container and its first video stream, with one sentence for whatever goes wrong inside."""
    av = av_package()
    # other formats are none of ours, and a list of files would make libav read them
    if film_kind(data) is None and not data.startswith(b"GIF8"):
        raise BadSample(
            f"The video cannot be decoded: it begins with {data[:8]!r}, as neither MP4, WebM nor GIF does."
        )
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:  # a file cut short may open all the same
                raise BadSample("The video has no frame.")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # workers are as many as cores
            stream.codec_context.thread_count = 1
            yield container, stream
    except (MemoryError, BadSample):
        raise
    except Exception as error:
        # decoders raise anything; the bytes lie in memory, so it is no I/O error
        raise BadSample(f"The video cannot be decoded: {error}.") from None


def _clock(container: Any, stream: Any) -> _Clock:
    """Read all packets of the stream, without decoding one."""
    begins = []
    keys = []
    end = None
    for packet in container.demux(stream):
        if packet.pts is None or packet.is_discard:  # the last of all, and those that are not shown
            continue
        begins.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        after = packet.pts + (packet.duration or 0)
        end = after if end is None else max(end, after)
    if not begins:
        raise BadSample("The video has no frame.")
    ticks = np.unique(np.array(begins, np.int64))
    unit = (stream.time_base.numerator, stream.time_base.denominator)
    if end == ticks[-1]:  # a stream that does not say how long its last frame is shown
        rate = stream.average_rate or stream.guessed_rate
        end += max(1, round(unit[1] / (float(rate) * unit[0]))) if rate else 1
    first = ticks[:1] if not keys else np.unique(np.array(keys, np.int64))
    return _Clock(ticks, first, int(end), unit)


def _decode(
    container: Any, stream: Any, clock: _Clock, wanted: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, upright pixels) of the wanted frames, in their order."""
    reformat = av_package().video.reformatter.VideoReformatter()
    numbers = {int(clock.ticks[number]): number for number in wanted}
    groups = np.searchsorted(clock.keys, clock.ticks[wanted], side="right") - 1
    for group in dict.fromkeys(groups.clip(0).tolist()):
        due = {
            int(clock.ticks[number]) for number, one in zip(wanted, groups.clip(0)) if one == group
        }
        container.seek(int(clock.keys[group]), stream=stream, backward=True)
        for frame in _group(container, stream, due):
            rgb = reformat.reformat(frame, format="rgb24").to_ndarray()
            turns = round(getattr(frame, "rotation", 0) / 90) % 4  # of phones
            yield numbers[frame.pts], np.ascontiguousarray(np.rot90(rgb, turns))


def _group(container: Any, stream: Any, due: set[int]) -> Iterator[Any]:
    """Frames that begin at the ticks `due`, decoded from here on; no more packets are read than they need."""
    context = stream.codec_context
    context.flush_buffers()
    sent = set()
    for packet in container.demux(stream):
        if packet.pts is not None:
            # what no other frame is made of need not be decoded
            context.skip_frame = "DEFAULT" if packet.pts in due else "NONREF"
        for frame in context.decode(packet):
            if frame.pts in due:
                yield frame
        sent.add(packet.pts)
        if due <= sent:
            break
    for frame in context.decode(None):
        if frame.pts in due:
            yield frame


def av_package() -> ModuleType:
    """The package av; ValueError with what to do where it is missing."""
    try:
        import av
    except ImportError:
        raise ValueError(
            "Videos need the package av: pip install av, or store frames as pictures (KEY.0.jpg, ...)."
        ) from None
    return av
