"""Frames of real mp4 files, written here by the package `av`."""

import io

import numpy as np
import pytest

from molmo_ds.data.decode import BadSample, load_frames


@pytest.fixture(scope="module")
def film() -> bytes:
    """Ten frames of 48 x 32 pixels, frame i of the grey 25 * i."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(10):
            picture = np.full((32, 48, 3), 25 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def test_frames_are_evenly_spaced(film: bytes) -> None:
    frames = load_frames(film, 4)
    assert all(frame.shape == (32, 48, 3) and frame.dtype == np.uint8 for frame in frames)
    greys = [frame.mean() for frame in frames]
    assert greys == pytest.approx([0, 75, 150, 225], abs=3)  # frames 0, 3, 6, 9; the codec is lossy


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_cut_file_is_a_bad_sample(film: bytes, share: float) -> None:
    with pytest.raises(BadSample, match="video"):
        load_frames(film[: int(len(film) * share)], 4)
