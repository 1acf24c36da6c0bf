"""Where the host waits for the device: each wait under our function and DeepSpeed's function that asked for it."""

import contextlib
import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from molmo_ds.testing.twin import torch_cuda

Place = tuple[str, str]  # ours, DeepSpeed's ("" where there is none): "engine/engine.py means"
OURS = "/molmo_ds/"
NOT_OURS = "/molmo_ds/testing/twin/"
DEEPSPEED = "/site-packages/deepspeed/"
INTERPRETED = "/triton/runtime/interpreter.py"  # copies kernels' arguments, as no GPU does
TELL = ctypes.CFUNCTYPE(None)


@contextlib.contextmanager
def counted() -> Iterator[Counter[Place]]:
    """A count that afterwards holds the waits inside the block, of all threads."""
    found: Counter[Place] = Counter()

    def note() -> None:
        place = place_of(sys._getframe())
        if place is not None:
            found[place] += 1

    tell = TELL(note)
    torch_cuda.library.twin_on_wait(tell)
    try:
        yield found
    finally:
        torch_cuda.library.twin_on_wait(ctypes.cast(None, TELL))


def place_of(frame: FrameType | None) -> Place | None:
    """The innermost functions of ours and of DeepSpeed around a frame; None inside an interpreted kernel."""
    ours = deepspeed = ""
    while frame is not None and not (ours and deepspeed):
        path = frame.f_code.co_filename
        if path.endswith(INTERPRETED):
            return None
        if DEEPSPEED in path:
            deepspeed = deepspeed or named(frame, DEEPSPEED)
        elif OURS in path and NOT_OURS not in path:
            ours = ours or named(frame, OURS)
        frame = frame.f_back
    return ours, deepspeed


def named(frame: FrameType, below: str) -> str:
    """File below a folder, and function."""
    path = Path(frame.f_code.co_filename.rpartition(below)[2])
    return f"{path} {frame.f_code.co_name}"
