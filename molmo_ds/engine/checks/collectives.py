"""check_collectives: before each of DeepSpeed's collectives the ranks compare what they are about to do.

A collective that one rank skips or calls with another size hangs the others until a time-out. With this check, which
costs a round trip to the store per collective, the run ends with a sentence that names both sides instead.

torch's own check (TORCH_DISTRIBUTED_DEBUG=DETAIL) names the same mistakes and knows that experts exchange unlike
numbers of rows, but it counts sends and receives too: it stops every pipeline of more than two stages, whose middle
stages send twice as often, at the first collective of all ranks (torch 2.13, gloo: "Sequence number: 793vs 830").
"""

import datetime
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

CHECKED = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "all_to_all_single",
    "all_to_all",
)
# of torch, called by the engines themselves
OURS = ("all_reduce", "all_gather", "all_to_all_single")
UNEVEN = ("all_to_all_single", "all_to_all")  # experts send as many rows as the router says
WATCHES = itertools.count()


class MismatchError(RuntimeError):
    """Ranks of a group are about to call different collectives."""


class Watch:
    """Numbers the collectives of each group and compares the descriptions of equal numbers."""

    def __init__(self, timeout_seconds: float) -> None:
        # a second engine of the process must not read the first one's keys
        self.store = dist.PrefixStore(
            f"check_collectives/{next(WATCHES)}", dist.distributed_c10d._get_default_store()
        )
        self.timeout = datetime.timedelta(seconds=timeout_seconds)
        self.counts: dict[tuple[int, ...], int] = {}
        self.where = "before the first step"

    def compare(
        self, name: str, tensor: torch.Tensor | None, group: dist.ProcessGroup | None
    ) -> None:
        """Raise MismatchError if another rank of the group does not come to the same collective in time."""
        ranks = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
        number = self.counts[ranks] = self.counts.get(ranks, 0) + 1
        shape = (
            ""
            if tensor is None or name in UNEVEN
            else f" of {tensor.numel()} x {str(tensor.dtype).removeprefix('torch.')}"
        )
        mine = f"{name}{shape} {self.where}"
        rank = dist.get_rank()
        key = f"{'-'.join(map(str, ranks))}/{number}"
        self.store.set(f"{key}/{rank}", mine)
        for other in ranks:
            try:
                self.store.wait([f"{key}/{other}"], self.timeout)
            except dist.DistStoreError:
                seconds = self.timeout.total_seconds()
                raise MismatchError(
                    f"Rank {rank} waits in {mine} and rank {other} did not come to it within {seconds:.0f} s; "
                    "every rank must run every module in every micro-step."
                ) from None
            theirs = self.store.get(f"{key}/{other}").decode()
            if theirs != mine:
                raise MismatchError(
                    f"Rank {rank} calls {mine} where rank {other} calls {theirs}; every rank must run every module "
                    "in every micro-step."
                )
        if number > 2:  # all have read it, or they would not be at the one after next
            self.store.delete_key(f"{'-'.join(map(str, ranks))}/{number - 2}/{rank}")


def check(timeout_seconds: float) -> Watch:
    """Put a watch before every collective that DeepSpeed and the engines call in this process from now on."""
    from molmo_ds.engine import deepspeed_0_19

    watch = Watch(timeout_seconds)

    def watched(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = next((a for a in (*args, *kwargs.values()) if torch.is_tensor(a)), None)
            group = next(
                (a for a in (*args, *kwargs.values()) if isinstance(a, dist.ProcessGroup)), None
            )
            watch.compare(name, tensor, group)
            return function(*args, **kwargs)

        return call

    # DeepSpeed's go through its backend, and some of them from there through torch's once more
    for owner, names in ((deepspeed_0_19.backend(), CHECKED), (dist, OURS)):
        for name in names:
            function = getattr(owner, name)
            # an earlier engine's watch is replaced
            plain = getattr(function, "unwatched", function)
            setattr(owner, name, watched(name, plain))
            getattr(owner, name).unwatched = plain
    return watch
