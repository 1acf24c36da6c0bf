"""Copies of the state in host memory, made while the next step computes: only its update waits for them.

Between two updates nothing changes fp32 weights and optimizer state. What lies on a GPU is copied to pinned memory on a
stream of its own, what lies in host memory by the thread that writes it. Most tensors are slices of a few flat ones.
These are copied whole: to begin a copy takes the host as long as to find a tensor.
"""

import os
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class _Span:
    """The stretch of a GPU's memory that holds some tensors of one type, in elements."""

    name: str  # of the first tensor that was found, and of the buffer
    tensor: Tensor
    first: int
    last: int
    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> begin, elements

    def add(self, name: str, begin: int, size: int) -> None:
        """Reach over one more."""
        self.places[name] = begin, size
        self.first = min(self.first, begin)
        self.last = max(self.last, begin + size)

    def whole(self) -> Tensor:
        """[last - first], a view."""
        return self.tensor.as_strided((self.last - self.first,), (1,), self.first)

    def slices(self, copy: Tensor) -> dict[str, Tensor]:
        """The tensors in a copy of it."""
        return {
            name: copy.narrow(0, begin - self.first, size)
            for name, (begin, size) in self.places.items()
        }


class Copies:
    """The copies of one rank, one save after the other.

    The training thread calls `begin`, `add` for each tensor, `hand_over`, and `wait` before anything changes; the
    thread that writes calls `finish`.
    """

    def __init__(self, device: torch.device, scratch: Path | None) -> None:
        self.device = device
        # for copies that must not fill the host's memory; what they are made of is in memory only until the next piece
        self.scratch = scratch
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # a new buffer at each save costs more than the copying
        self.buffers: dict[str, Tensor] = {}
        self.spans: dict[tuple[int, torch.dtype], _Span] = {}  # by the memory that they are in
        self.later: dict[str, Tensor] = {}  # what the thread copies
        self.on_device: torch.cuda.Event | None = None  # behind the copies of this save
        self.on_host = threading.Event()
        self.on_host.set()

    def begin(self) -> None:
        """A save begins, of the state as the work that was put on the current stream leaves it."""
        self.spans = {}
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor [n], contiguous, now or later."""
        tensor = tensor.detach()
        if self.scratch is not None:
            self._buffer(name, tensor).copy_(tensor)
        elif tensor.is_cuda:
            key = tensor.untyped_storage().data_ptr(), tensor.dtype
            begin = tensor.storage_offset()
            if key not in self.spans:
                self.spans[key] = _Span(name, tensor, begin, begin)
            self.spans[key].add(name, begin, tensor.numel())
        else:
            self.later[name] = tensor

    def hand_over(self) -> None:
        """All tensors are there; what lies in host memory is left to `finish`."""
        if self.stream is not None:
            with torch.cuda.stream(self.stream):
                for span in self.spans.values():
                    whole = span.whole()
                    self._buffer(span.name, whole).copy_(whole, non_blocking=True)
            self.on_device = self.stream.record_event()
        self.on_host.clear()

    def finish(self, names: list[str]) -> dict[str, Tensor]:
        """The copies, whole."""
        try:
            for name, tensor in self.later.items():
                self._buffer(name, tensor).copy_(tensor)
        finally:
            self.later = {}
            self.on_host.set()
        if self.on_device is not None:
            self.on_device.synchronize()
        made = dict(self.buffers)
        for span in self.spans.values():
            made |= span.slices(self.buffers[span.name])
        self.spans = {}
        return {name: made[name] for name in names}

    def wait(self) -> None:
        """Whatever is done from now on may change the state: the host and the current stream wait for the copies."""
        self.on_host.wait()
        if self.on_device is not None:
            torch.cuda.current_stream(self.device).wait_event(self.on_device)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        known = self.buffers.get(name)
        if known is None or known.shape != tensor.shape:
            self.buffers[name] = buffer(tensor, self.scratch)
        return self.buffers[name]


def buffer(tensor: Tensor, folder: Path | None) -> Tensor:
    """Host memory for a copy, pinned where the tensor is on a GPU.

    With a folder it is a file without a name there, which the kernel pages in and out.
    """
    if folder is None:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    made = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    os.unlink(path)
    return made.view(tensor.shape)
