"""Brings micro-batches to a GPU on a stream of their own, the next one while one is computed with.

On the stream of the network a copy would wait for the micro-step before it, and the micro-step after it for the copy.
"""

from dataclasses import dataclass

import torch

from molmo_ds.batch import Batch


@dataclass(frozen=True)
class Sent:
    """A batch on its way; read it by `Feeder.arrived`."""

    batch: Batch
    copied: torch.cuda.Event | None  # None on a CPU, where it is there already


class Feeder:
    """The way from the host to one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> Sent:
        """Begin the copy of a batch that lies on the CPU."""
        if self.stream is None:
            return Sent(batch.to(self.device), None)
        with torch.cuda.stream(self.stream):
            return Sent(batch.to(self.device), self.stream.record_event())

    def arrived(self, sent: Sent) -> Batch:
        """The batch, for the stream that is current: what is put on it from now on waits for the copy."""
        if sent.copied is not None:
            network = torch.cuda.current_stream(self.device)
            network.wait_event(sent.copied)
            for tensor in vars(sent.batch).values():
                tensor.record_stream(network)  # or the allocator gives it away too early
        return sent.batch
