"""NCCL on the twin: gloo under NCCL's rules, which refuse what gloo would forgive."""

import datetime
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "reduce",
    "all_to_all",
    "all_to_all_single",
)
MET = 1 << 20  # added to the tag of a message, that of its receiver's answer
SUMS = ("reduce", "reduce_scatter", "reduce_scatter_tensor")
NO_SUM = (torch.bool, torch.int16)  # types that NCCL does not add
timeouts: list[
    tuple[tuple[int, ...] | None, datetime.timedelta]
] = []  # (ranks, time-out) of each group


class NcclRuleError(RuntimeError):
    """A call that NCCL refuses."""


def check(name: str, values: Any) -> None:
    """NcclRuleError for a tensor among `values`, or in a list among them, that NCCL does not take."""
    for value in values:
        if isinstance(value, (list, tuple)):
            check(name, value)
        if not torch.is_tensor(value):
            continue
        reason = refusal(name, value)
        if reason:
            raise NcclRuleError(f"{name} of {reason}, shape {tuple(value.shape)}")


def refusal(name: str, tensor: Tensor) -> str | None:
    """What NCCL does not take about a tensor; None if it takes it."""
    if not tensor.is_cuda:
        return "a CPU tensor"
    if not tensor.is_contiguous():
        return f"a tensor that is not contiguous (strides {tensor.stride()})"
    if name in SUMS and tensor.dtype in NO_SUM:
        return f"type {tensor.dtype}"
    return None


def strict(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function `name` of torch.distributed under NCCL's rules."""

    def call(*args: Any, **more: Any) -> Any:
        check(name, (*args, *more.values()))
        began = time.monotonic()
        try:
            return function(*args, **more)
        except RuntimeError as error:
            give_up(name, error, began)

    return call


def meeting() -> dict[str, Callable[..., Any]]:
    """send and recv that end when both sides are there.

    A send of NCCL's keeps its communicator busy until it is received; gloo's only fills a buffer. Two ranks that both
    send first, and then receive, hang under NCCL, and here as well.
    """
    give, take = dist.send, dist.recv

    def send(
        tensor: Tensor, dst: int | None = None, group: Any = None, tag: int = 0,
        group_dst: int | None = None,
    ) -> None:  # fmt: skip
        give(tensor, dst, group, tag, group_dst)
        take(torch.empty(1), dst, group, tag + MET, group_dst)

    def recv(
        tensor: Tensor, src: int | None = None, group: Any = None, tag: int = 0,
        group_src: int | None = None,
    ) -> int:  # fmt: skip
        sender = take(tensor, src, group, tag, group_src)
        give(torch.zeros(1), src, group, tag + MET, group_src)
        return sender

    return {"send": send, "recv": recv}


def give_up(name: str, error: RuntimeError, began: float) -> NoReturn:
    """End as NCCL's watchdog ends a process whose peer is gone: after the time-out, by an abort, with no exception.

    gloo raises at once where a peer died. Only calls that wait are played so, not those that return a handle.
    """
    timeout = dist.distributed_c10d.default_pg_nccl_timeout.total_seconds()
    time.sleep(max(0.0, began + timeout - time.monotonic()))
    print(f"the twin's NCCL gives up {name}: {error}", file=sys.stderr, flush=True)
    os.abort()


def install() -> None:
    """Let torch.distributed make gloo of "nccl", check tensors, and note time-outs as NCCL's groups take them."""
    c10d = dist.distributed_c10d
    if c10d.default_pg_nccl_timeout is None:
        c10d.default_pg_nccl_timeout = datetime.timedelta(minutes=10)
    first_group = dist.init_process_group
    next_group = dist.new_group

    def default() -> datetime.timedelta:
        return c10d.default_pg_nccl_timeout

    def init_process_group(backend: str | None = None, *args: Any, **more: Any) -> Any:
        more.pop("device_id", None)
        more["timeout"] = more.get("timeout") or default()
        timeouts.append((None, more["timeout"]))
        played = "cpu:gloo,cuda:gloo" if backend in (None, "nccl") else backend
        return first_group(played, *args, **more)

    def new_group(
        ranks: Any = None, timeout: Any = None, backend: str | None = None, *args: Any, **more: Any
    ) -> Any:
        more.pop("device_id", None)
        on_gpu = backend in (None, "nccl")
        timeout = timeout or (default() if on_gpu else c10d.default_pg_timeout)
        timeouts.append((tuple(ranks) if ranks else None, timeout))
        return next_group(ranks, timeout, None if on_gpu else backend, *args, **more)

    dist.init_process_group = c10d.init_process_group = init_process_group
    dist.new_group = c10d.new_group = new_group
    dist.is_nccl_available = lambda: True
    dist.get_backend = lambda group=None: "nccl"
    functions = {name: getattr(dist, name) for name in COLLECTIVES} | meeting()
    for name, function in functions.items():
        setattr(dist, name, strict(name, function))
