"""Places of parameters on a rank: slices of the fp32 weight and of the optimizer's state, under one set of names.

DeepSpeed lays parameters out in flat partitions that differ by stage. Everything that must not care (checkpoints, first
weights, full state, clipping) goes through this file.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.grid import COPIES
from molmo_ds.weights.pieces import runs

MUON = {"momentum_buffer"}  # its state; what else there is, is AdamW's
Named = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Fragment:
    """A piece of one flattened parameter, from element `start` on.

    It is contiguous, unless `stride` says otherwise: see `runs`.
    `tensors` are 1-D views of equal length into live memory: "weight" (fp32 master, or the frozen weight) and the
    optimizer's state tensors by their torch names, once there are any. `scalars` are its other state, such as Adam's
    step. `trains` is set where the optimizer owns it. `copies` are the axes of the grid whose ranks hold the same
    piece; on exactly one of them it is `owned`: that rank writes and sums it. `shares` are the axes whose ranks hold
    other columns of the same rows.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]
    scalars: dict[str, float]
    trains: bool
    copies: tuple[str, ...]
    owned: bool = False
    stride: tuple[int, ...] = ()
    shares: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Elements of this piece."""
        return self.tensors["weight"].numel()

    @property
    def of_experts(self) -> bool:
        """Whether the parameter belongs to experts."""
        return ".mlp.experts." in self.name

    def runs(self) -> list[tuple[int, int, int]]:
        """Its contiguous stretches; see weights/pieces.py."""
        return runs(self.start, self.size, self.stride)


def fragments(module: nn.Module, engine: Any, changed: bool = False) -> Iterator[Fragment]:
    """Every piece this rank holds, in the order of the model's parameters; of what lies on NVMe by sub-group.

    Args:
        module: the model, whose parameter names are the names of the pieces.
        engine: what deepspeed.initialize returned for it.
        changed: whether the pieces are written to. One from NVMe is in memory only until the next is asked for.
    """
    named = (
        (name.replace("_orig_mod.", ""), parameter) for name, parameter in module.named_parameters()
    )
    for part, inside in _in_memory(named, engine, changed):
        with inside:
            flats: dict[int, _Flat] = {}
            for name, parameter in part:
                yield from _fragment(name, parameter, engine, flats)


def _in_memory(
    named: Named, engine: Any, changed: bool
) -> Iterator[tuple[Named, AbstractContextManager]]:
    # parameters, together with the context inside which this rank's pieces of them are in memory: all at once, unless
    # something lies on NVMe: then by sub-group, and frozen ones one by one
    zero = engine.optimizer
    if not deepspeed_0_19.uses_nvme(zero):
        yield named, nullcontext()
        return
    deepspeed_0_19.settle(zero)
    group_of = deepspeed_0_19.sub_group_of(zero)
    together: dict[Any, list] = {}
    for name, parameter in named:
        together.setdefault(group_of.get(id(parameter), name), []).append((name, parameter))
    for key, part in together.items():
        if isinstance(key, int):
            yield part, deepspeed_0_19.sub_group(zero, key, changed)
        else:
            yield part, deepspeed_0_19.frozen_weight(part[0][1], changed)


class _Flat:
    """A master with its state, of which many parameters are slices: a number on a GPU is read once, and not for each.

    Valid as long as it is in memory.
    """

    def __init__(self, master: Tensor, engine: Any) -> None:
        self.master = master  # kept, or its id might become another's
        self.tensors = {"weight": master.data.view(-1)}
        self.scalars: dict[str, float] = {}
        for key, value in deepspeed_0_19.torch_optimizer(engine).state.get(master, {}).items():
            if torch.is_tensor(value) and value.numel() == master.numel() and value.dim():
                self.tensors[key] = value.view(-1)
            else:
                self.scalars[key] = float(value)


def _fragment(
    name: str, parameter: nn.Parameter, engine: Any, flats: dict[int, _Flat]
) -> Iterator[Fragment]:
    place = deepspeed_0_19.place(engine, parameter)
    if place is None:
        return
    number = id(place.master)
    if number not in flats:
        flats[number] = _Flat(place.master, engine)
    flat = flats[number]
    tensors = {
        key: whole.narrow(0, place.offset, place.size) for key, whole in flat.tensors.items()
    }
    shape = deepspeed_0_19.whole_shape(parameter)
    copies = () if place.split else COPIES
    scalars = dict(flat.scalars)
    yield Fragment(name, shape, place.start, tensors, scalars, parameter.requires_grad, copies)


def create_state(engine: Any, keys: set[str], scalars: set[str]) -> None:
    """Make the optimizer's state tensors (zeros) before its first step, for a checkpoint to fill."""
    optimizer = deepspeed_0_19.torch_optimizer(engine)
    state = optimizer.state
    groups = optimizer.param_groups
    on_device = any(group.get("fused") or group.get("capturable") for group in groups)
    matrices = {id(p) for group in groups if "matrices" in group for p in group["params"]}
    for i, flat in enumerate(deepspeed_0_19.masters(engine)):
        of_muon = id(flat) in matrices
        with deepspeed_0_19.sub_group(engine.optimizer, i, changed=True):
            for key in sorted(keys & MUON if of_muon else keys - MUON):
                state[flat].setdefault(key, torch.zeros_like(flat.data))
        for key in () if of_muon else scalars:
            state[flat].setdefault(key, torch.zeros((), device=flat.device if on_device else "cpu"))


def set_scalars(engine: Any, values: dict[str, float]) -> None:
    """Set state that is one number (Adam's step) for all parameters."""
    for state in deepspeed_0_19.torch_optimizer(engine).state.values():
        for key in values.keys() & state.keys():
            state[key] = state[key].new_tensor(values[key])


@dataclass(frozen=True)
class Gradients:
    """This rank's averaged gradients of one group of the optimizer; `copies` as in Fragment."""

    component: str
    tensors: list[Tensor]
    copies: tuple[str, ...]


def gradients(engine: Any, groups: list[dict]) -> Iterator[Gradients]:
    """The gradients between the last backward pass and the step, to be scaled in place.

    Args:
        groups: of the optimizer as they were before DeepSpeed replaced their parameters by flat ones; "copies" are
            axes, other than those over which ZeRO splits, whose ranks have the same gradients.
    """
    parts = deepspeed_0_19.gradients(engine)
    split = parts is not None
    if parts is None:
        parts = [
            (i, [p.grad for p in group["params"] if p.grad is not None])
            for i, group in enumerate(groups)
        ]
    for i, tensors in parts:
        copies = groups[i].get("copies", ())
        yield Gradients(groups[i]["component"], tensors, copies if split else (*COPIES, *copies))
