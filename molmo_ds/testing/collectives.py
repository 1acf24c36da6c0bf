"""Records the collectives of a step, as torch's dispatcher sees them, on real ranks or on ranks that are made up.

Made-up ranks: `pretend` gives a process the place of one rank among any number, whose collectives move nothing. There
the real engine runs at real size with fake tensors (`without_memory`), which have a shape and no numbers.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.checks.gradient_order import GradientOrder
from molmo_ds.engine.engine import DeepSpeedEngine
from molmo_ds.engine.launch import World
from molmo_ds.ops import dispatch, weighted_cross_entropy
from molmo_ds.ops.tree_attention import mask_blocks, reference

COORDINATOR = "deepspeed.runtime.zero.partitioned_param_coordinator"
REDUCTION = "deepspeed.runtime.zero.stage3.reduce_scatter_coalesced"
SPLIT_PLAN = "deepspeed.module_inject.auto_ep_layer.compute_split_plan"
KINDS = {  # the dispatcher's name -> torch.distributed's
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "reduce_": "reduce",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "broadcast_": "broadcast",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "barrier": "barrier",
    "send": "send",
    "recv_": "recv",
    "recv_any_source_": "recv",
    "scatter_": "scatter",
    "gather_": "gather",
}


@dataclass(frozen=True)
class Call:
    """One collective of one rank."""

    kind: str
    elements: int  # of the largest tensor of the call: what is gathered, reduced or sent
    dtype: str
    members: int  # ranks of its group

    @property
    def of_objects(self) -> bool:
        """Whether it carries pickled objects, or their lengths: no tensor of a network is uint8."""
        return self.dtype == "uint8"

    @property
    def bytes(self) -> int:
        """Of the elements."""
        return self.elements * getattr(torch, self.dtype).itemsize


class Recorder(TorchDispatchMode):
    """`calls` are the collectives inside the block, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.namespace == "c10d" and function._opname in KINDS:
            self._note(KINDS[function._opname], args)
        return out

    def _note(self, kind: str, args: tuple) -> None:
        leaves = torch.utils._pytree.tree_leaves(args)
        tensors = [x for x in leaves if torch.is_tensor(x)]
        group = next((x for x in args if isinstance(x, torch.ScriptObject)), None)
        members = dist.ProcessGroup.unbox(group).size() if group is not None else 1
        largest = max(tensors, key=Tensor.numel, default=torch.empty(0))
        self.calls.append(
            Call(kind, largest.numel(), str(largest.dtype).removeprefix("torch."), members)
        )


def tally(calls: Iterable[Call]) -> dict[str, tuple[int, int]]:
    """kind -> (how many, bytes), of the calls of groups of several ranks."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for call in calls:
        if call.members > 1:
            counts[call.kind] += 1
            sizes[call.kind] += call.bytes
    return {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}


class _Alone(World):
    """The World of a rank that hears nobody."""

    def broadcast(self, value: Any) -> Any:
        """This rank's own."""
        return value

    def agree(self, action: Callable[[], Any]) -> Any:
        """What this rank makes."""
        return action()


def pretend(ranks: int, rank: int = 0) -> World:
    """The World of one of `ranks` made-up ranks; once in a process.

    What rank 0 would send to the others is what this rank makes itself.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from molmo_ds.engine import launch

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
    deepspeed_0_19.compile_no_ops()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    return _Alone(**vars(launch.start()))


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside the block tensors are fake, a number that is read back from one is 1 (a truth is
    false), and nothing compares numbers."""
    plain, plain_narrow = Tensor.tolist, Tensor.narrow

    def tolist(tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return plain(tensor)
        return np.full(tuple(tensor.shape), _one(tensor.dtype)).tolist()

    read_back = torch.ops.aten._local_scalar_dense.default
    table = {read_back: lambda mode, function, tensor: _one(tensor.dtype)}

    def narrow(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
        # a gather's buffer is cut in one for each rank: all after the first are the second
        if not start or length * dist.get_world_size() != tensor.numel():
            return plain_narrow(tensor, dim, start, length)
        kept = vars(tensor)
        if "second_part" not in kept:
            kept["second_part"] = plain_narrow(tensor, dim, start, length)
        return kept["second_part"]

    def with_numbers(size: int, make: Any = deepspeed_0_19.tensor_groups) -> list[Any]:
        with unset_fake_temporarily():
            return make(size)

    with (
        mock.patch.object(deepspeed_0_19, "tensor_groups", with_numbers),
        mock.patch.dict(fake_impls.op_implementations_dict, table),
        mock.patch.object(Tensor, "tolist", tolist),
        mock.patch.object(FakeTensor, "narrow", narrow, create=True),
        mock.patch.object(reference, "lengths_of", lambda document_ids: None),
        mock.patch.object(mask_blocks, "cut", lambda mask: None),
        mock.patch.object(weighted_cross_entropy, "_looked_up", lambda labels, *_: labels),
        dispatch.use("torch"),  # what is written for a CPU looks at numbers
        mock.patch.object(GradientOrder, "_compare", lambda *_: None),
        mock.patch.object(DeepSpeedEngine, "set_weights", lambda *_: None),
        # a fake parameter cannot be moved in place
        mock.patch.object(nn.Module, "to", lambda module, *_: module),
        mock.patch(f"{COORDINATOR}.assert_ints_same_as_other_ranks", lambda _: None),
        mock.patch(REDUCTION, _scattered),
        mock.patch(SPLIT_PLAN, _even_plan),
        # of experts; torch's knows no fake fp32
        mock.patch.object(torch, "_grouped_mm", lambda rows, weights, **_: rows @ weights[0]),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def _scattered(tensors: list[Tensor], group: Any = None) -> list[Tensor]:
    """What DeepSpeed's reduce_scatter_coalesced sends and gives, which cuts each tensor in one for each rank first.

    At 1,024 ranks and 72B these are a million fake tensors in each step, half an hour of Python.
    """
    import deepspeed.comm

    size, rank = deepspeed.comm.get_world_size(group), deepspeed.comm.get_rank(group)
    lengths = [math.ceil(tensor.numel() / size) for tensor in tensors]
    whole = tensors[0].new_empty(sum(lengths) * size)
    mine = whole.narrow(0, sum(lengths) * rank, sum(lengths))
    deepspeed.comm.reduce_scatter_fn(mine, whole, group=group, async_op=False)
    parts = mine.split(lengths)
    left = [tensor.numel() - length * rank for tensor, length in zip(tensors, lengths)]
    return [part[: max(0, size)] for part, size in zip(parts, left)]


def _even_plan(
    selected_experts: Tensor,
    num_experts: int,
    ep_size: int,
    num_local_experts: int,
    ep_group: Any,
    num_tokens_per_expert: Tensor,
) -> Any:
    """AutoEP's plan where each rank sends and gets as many rows; fake tokens choose no expert."""
    import deepspeed.comm
    from deepspeed.module_inject.auto_ep_layer import SplitPlan

    received = torch.empty_like(num_tokens_per_expert)
    deepspeed.comm.all_to_all_single(received, num_tokens_per_expert, group=ep_group)
    rows = selected_experts.numel()
    splits = [rows * (i + 1) // ep_size - rows * i // ep_size for i in range(ep_size)]
    return SplitPlan(splits, splits, received.view(ep_size, num_local_experts))


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False  # an overflow would leave out the optimizer's step
    return 1.0 if dtype.is_floating_point else 1
