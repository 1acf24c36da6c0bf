"""What torch raises where another rank is gone or silent, or memory is over, as a sentence."""

import os
import sys

import torch
import torch.distributed as dist

# of gloo, which raises plain RuntimeErrors
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")
SILENT = ("Timed out waiting", "timed out")


def sentence(error: RuntimeError) -> str | None:
    """Which of these it is; None for an error of another kind, which is ours to mend."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "The memory of the GPU is over; ask fewer questions at once, or spread the weights over more ranks"
    if any(mark in text for mark in SILENT):
        return "Another rank did not answer in time; what it said itself stands above"
    if isinstance(error, dist.DistError) or any(mark in text for mark in GONE):
        return "Another rank has ended; what it said itself stands above"
    return None


def leave(error: RuntimeError, advice: str) -> None:
    """End the process with a sentence and an advice; errors of another kind come back.

    Without destructors, which may wait for the rank that is gone.
    """
    said = sentence(error)
    if said is not None:
        print(f"molmo_ds: {said}; {advice}", file=sys.stderr, flush=True)
        os._exit(1)
