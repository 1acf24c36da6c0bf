"""Small videos and pictures of one grey, written by the packages av and Pillow."""

import io
from fractions import Fraction

import numpy as np
from PIL import Image


def film(begins: list[int], key_every: int = 12, codec: str = "mpeg4") -> bytes:
    """An mp4 of 48 x 32 pixels, frame i of the grey 10 * i, which begins at begins[i] milliseconds."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream(codec, rate=1000)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = key_every
        for i, begin in enumerate(begins):
            picture = np.full((32, 48, 3), 10 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = begin
            frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def png(grey: int) -> bytes:
    """A picture of 48 x 32 pixels."""
    out = io.BytesIO()
    Image.fromarray(np.full((32, 48, 3), grey, np.uint8)).save(out, "PNG")
    return out.getvalue()
