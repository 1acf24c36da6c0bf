"""A decode step as a function of static shapes: run as it is, compiled, or replayed as a CUDA graph of its bucket.

A step reads only buffers that stay where they are: the newest tokens, their positions, the cache and, in a later stage,
the hidden states that were received. All it changes is the place of each row's newest token in the cache, so it may run
several times before it counts, as warming up and capture do.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from molmo_ds.batch import Carry
from molmo_ds.engine import compiled
from molmo_ds.engine.answering.share import Share
from molmo_ds.infer.slots import Bucket, Slots
from molmo_ds.model.decoder import DecoderLayer

log = logging.getLogger(__name__)

WARMING = 3  # runs before a capture: libraries choose kernels and make their work space
# that are compiled; torch's own limit for one function is 8, and beyond it the function runs uncompiled
MOST_BUCKETS = 256


class Graph(Protocol):
    """Work that was recorded: `replay` does it again on the same memory."""

    def replay(self) -> None:
        """Do it once more."""


# (the graph, where every replay leaves the result)
Capture = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]


class CudaCapture:
    """Captures on a GPU; its graphs share one pool of memory, so only the newest replay's result is valid."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Warm up on a side stream, as CUDA asks, then record `work`."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMING):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog is a thread
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = work()
        return graph, out


class DecodeStep:
    """The decoder layers of a rank for one more token of every running row.

    Args:
        compile: whether the layers are compiled; equal layers share one compiled function for each bucket.
        capture: records a bucket's step when it first occurs; None runs every step as it is.
    """

    def __init__(
        self, share: Share, slots: Slots, compile: bool = False, capture: Capture | None = None
    ) -> None:
        self.share = share
        self.slots = slots
        self.layer_run = _compiled_run() if compile else DecoderLayer.run
        self.capture = capture
        self.graphs: dict[Bucket, tuple[Graph, Tensor]] = {}
        first = share.embed is not None
        shape = (slots.count, 1, share.config.text.hidden_size)
        self.received = (
            None if first else torch.zeros(shape, device=share.device, dtype=share.dtype)
        )

    def __call__(self, x: Carry) -> Tensor:
        """x as `Slots.carry` and `Share.receive` made it -> hidden states [R, 1, D]; the slots are entered."""
        if self.capture is None:
            return self.share.compute(x, self.layer_run)
        if self.received is not None:
            buffer = self.received[: len(x.hidden)]
            x = x._replace(hidden=buffer.copy_(x.hidden))
        bucket = self.slots.bucket
        if bucket not in self.graphs:
            self.graphs[bucket] = self.capture(lambda: self.share.compute(x, self.layer_run))
        graph, out = self.graphs[bucket]
        graph.replay()
        return out.clone()  # the next replay writes there again


def default_capture(share: Share) -> Capture | None:
    """CUDA graphs where a GPU is, and every step as it is elsewhere."""
    if share.device.type != "cuda":
        return None
    if share.config.text.num_experts and share.dtype != torch.bfloat16:
        log.warning(
            "Decode steps are no CUDA graphs: in %s the product of experts waits for the GPU.",
            share.dtype,
        )
        return None
    return CudaCapture()


def _compiled_run() -> Callable[..., Tensor]:
    run = torch.compile(DecoderLayer.run, dynamic=False, backend=compiled.BACKEND)

    def with_many_shapes(*args: object) -> Tensor:
        limits = {"recompile_limit": MOST_BUCKETS, "accumulated_recompile_limit": MOST_BUCKETS}
        with torch._dynamo.config.patch(**limits):
            return run(*args)

    return with_many_shapes
