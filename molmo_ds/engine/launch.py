"""One process of a run: its rank, its device, its process group, whoever started it."""

import datetime
import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """Where this process stands among all."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, on every rank."""
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable value."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def start(timeout_seconds: int = 600) -> World:
    """Join the process group that deepspeed, accelerate, torchrun or nobody (one rank) prepared.

    On a CPU the backend is gloo, on a GPU NCCL. DeepSpeed's shared-memory collective is switched off first: it would be
    compiled for a minute at the first start and crashed in our trials.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=timeout_seconds)
    # neither DEEPSPEED_TIMEOUT nor init_distributed(timeout=) reaches the groups that DeepSpeed makes later
    dist.distributed_c10d.default_pg_timeout = timeout
    if not dist.is_initialized():
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=timeout, verbose=False)
    return World(dist.get_rank(), local_rank, dist.get_world_size(), device)


def leave(world: World, code: int = 0) -> None:
    """End this process without running destructors, which abort one launch in forty after a gloo group was used."""
    import sys

    world.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
