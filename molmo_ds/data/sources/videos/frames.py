"""The frames of a video that is published as pictures, as one MP4 that holds the very bytes of its JPEG files."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from PIL import Image

from molmo_ds.data.decode import BadSample
from molmo_ds.data.video import av_package


def joined(paths: Sequence[Path], rate: int) -> bytes:
    """An MP4 of JPEG files of one size, at least one, each shown for 1 / rate seconds; nothing is encoded again.

    Raises BadSample where the first is no picture, ValueError where the package av is missing.
    """
    av = av_package()
    out = io.BytesIO()
    try:
        with Image.open(paths[0]) as first:
            width, height = first.size
    except OSError as error:
        raise BadSample(f"{paths[0]} is no picture: {error}.") from None
    with av.open(out, "w", format="mp4") as film:
        stream = film.add_stream("mjpeg", rate=rate)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuvj420p"
        stream.time_base = Fraction(1, rate)
        for number, path in enumerate(paths):
            packet = av.Packet(path.read_bytes())
            packet.stream = stream
            packet.time_base = Fraction(1, rate)
            packet.pts = number
            packet.dts = number
            packet.duration = 1
            packet.is_keyframe = True
            film.mux(packet)
    return out.getvalue()
