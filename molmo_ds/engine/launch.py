"""One process of a run: its rank, its device, its process group, under any launcher."""

import datetime
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from molmo_ds.engine.launching.op_locks import drop_stale_locks
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.environment import rank

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among all."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, values: list[int], copies: int = 1) -> list[int]:
        """The sum of each value over all ranks, of which every `copies` have the same values."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, device=self.device)
        dist.all_reduce(tensor)
        return (tensor // copies).tolist()

    def first_said(self, value: T | None) -> T | None:
        """The value of the first rank that has one; where none has, one number is all that is sent."""
        if not self.largest(int(value is not None))[0]:
            return None
        return next(said for said in self.gather(value) if said is not None)

    def agree(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 alone; what it gives, or raises as ValueError or OSError, every rank gets."""
        made = failure = None
        if self.rank == 0:
            try:
                made = action()
            except (ValueError, OSError) as error:
                failure = error
        made, failure = self.broadcast((made, failure))
        if failure:
            raise failure
        return made

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; what one of them raises as ValueError or OSError is raised on every rank."""
        made = failure = None
        try:
            made = action()
        except (ValueError, OSError) as error:
            failure = error
        if failure := self.first_said(failure):
            raise failure
        return made

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def alone() -> World:
    """The world of one process without a process group, and so without DeepSpeed."""
    return World(0, 0, 1, torch.device("cpu"))


def nccl_watch(timeout_seconds: int) -> dict[str, str]:
    """Variables that make NCCL's watchdog end a process whose peer is gone, and record its collectives.

    A fault under NCCL raises nothing in Python: after the time-out the watchdog aborts the process, and what started it
    (torchrun, tools/launch.py) ends the others. Source: pytorch/pytorch v2.13, torch/csrc/distributed/c10d/
    ProcessGroupNCCL.hpp.
    """
    return {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # abort the process, not the communicator first
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",  # collectives that the flight recorder keeps
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(max(timeout_seconds, 60)),  # of the watchdog itself
    }


def allocator_setting(environment: Mapping[str, str]) -> dict[str, str]:
    """The setting of CUDA segments that grow, unless there is one: changing lengths fragment them less."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    if any(name in environment for name in names):
        return {}
    return {names[0]: "expandable_segments:True"}


def thread_count(environment: Mapping[str, str], cores: int) -> int | None:
    """Threads of one of the processes that share this machine's cores; None if OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in environment:
        return None
    # torchrun's, deepspeed's
    processes = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1
    return max(1, cores // int(processes))


def start(timeout_seconds: int = 600) -> World:
    """Join the process group that deepspeed, accelerate or torchrun prepared, or make one of one rank.

    On a CPU the backend is gloo, on a GPU NCCL. DeepSpeed's shared-memory collective is switched off: it would be
    compiled for a minute at the first start, and it crashed in our trials.

    Raises ValueError for a launcher's variables that are not whole.
    """
    # deprecations of torch.distributed that DeepSpeed calls, once per collective
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    if not torch.cuda.is_available():
        # or DeepSpeed says in every process that it found no other
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # without it DeepSpeed starts numactl for every bucket of gradients that ZeRO-3 reduces
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    from molmo_ds.engine import deepspeed_0_19

    deepspeed_0_19.compile_no_ops()
    _leave_out(deepspeed_0_19.MUON)
    rank()
    if "RANK" not in os.environ:
        alone = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        os.environ.update({name: str(value) for name, value in alone.items()})
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        os.environ.update(allocator_setting(os.environ))  # read at the first allocation
        torch.cuda.set_device(device)
    if (threads := thread_count(os.environ, len(os.sched_getaffinity(0)))) is not None:
        torch.set_num_threads(threads)
    timeout = datetime.timedelta(seconds=timeout_seconds)
    # neither DEEPSPEED_TIMEOUT nor init_distributed(timeout=) reaches the groups that DeepSpeed makes later
    dist.distributed_c10d.default_pg_timeout = timeout
    dist.distributed_c10d.default_pg_nccl_timeout = timeout
    if on_gpu:
        for name, value in nccl_watch(timeout_seconds).items():
            os.environ.setdefault(name, value)
    if not dist.is_initialized():
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=timeout, verbose=False)
    world = World(dist.get_rank(), local_rank, dist.get_world_size(), device)
    if local_rank == 0:
        drop_stale_locks()
    world.barrier()
    return world


def _leave_out(modules: dict[str, str]) -> None:
    # DeepSpeed asks whether our optimizer is its Muon; its modules load torch's compiler, a second at each start
    for name, attribute in modules.items():
        spec = importlib.util.find_spec(name)
        module = importlib.util.module_from_spec(spec)
        setattr(module, attribute, type(attribute, (), {}))
        sys.modules.setdefault(name, module)
