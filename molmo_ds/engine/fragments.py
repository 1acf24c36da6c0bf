"""Where a rank keeps each parameter: its slice of the fp32 weight and of the optimizer's state, under one set of names.

DeepSpeed lays parameters out in flat partitions that differ by stage. Everything that must not care (checkpoints, first
weights, full state, clipping) goes through this file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.engine import deepspeed_0_19, nvme
from molmo_ds.weights.checkpoint import runs


@dataclass(frozen=True)
class Fragment:
    """A piece of one flattened parameter, from element `start` on.

    It is contiguous, unless `stride` says otherwise: see `runs`.
    `tensors` are 1-D views of equal length into live memory: "weight" (fp32 master, or the frozen weight) and the
    optimizer's state tensors by their torch names, once there are any. `scalars` are its other state, such as Adam's
    step. `whole` is set where every rank holds the same piece, so that one of them is enough to save it; `trains` where
    the optimizer owns it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]
    scalars: dict[str, float]
    whole: bool
    trains: bool
    stride: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Elements of this piece."""
        return self.tensors["weight"].numel()

    def runs(self) -> list[tuple[int, int, int]]:
        """Its contiguous stretches; see weights/checkpoint.py."""
        return runs(self.start, self.size, self.stride)


def fragments(module: nn.Module, engine: Any, changed: bool = False) -> Iterator[Fragment]:
    """Every piece this rank holds, in the order of the model's parameters; of what lies on NVMe by sub-group.

    Args:
        module: the model, whose parameter names are the names of the pieces.
        engine: what deepspeed.initialize returned for it.
        changed: whether the pieces are written to. One from NVMe is in memory only until the next is asked for.
    """
    named = ((re.sub(r"_orig_mod\.", "", name), parameter) for name, parameter in module.named_parameters())
    for part, inside in nvme.parts(named, engine, changed):
        with inside:
            for name, parameter in part:
                yield from _fragment(name, parameter, engine)


def _fragment(name: str, parameter: nn.Parameter, engine: Any) -> Iterator[Fragment]:
    place = deepspeed_0_19.place(engine, parameter)
    if place is None:
        return
    flat = place.master
    tensors = {"weight": flat.data.view(-1).narrow(0, place.offset, place.size)}
    scalars = {}
    for key, value in deepspeed_0_19.torch_optimizer(engine).state.get(flat, {}).items():
        if torch.is_tensor(value) and value.numel() == flat.numel() and value.dim():
            tensors[key] = value.view(-1).narrow(0, place.offset, place.size)
        else:
            scalars[key] = float(value)
    shape = deepspeed_0_19.whole_shape(parameter)
    yield Fragment(name, shape, place.start, tensors, scalars, not place.split, parameter.requires_grad)


def create_state(engine: Any, keys: set[str], scalars: set[str]) -> None:
    """Make the optimizer's state tensors (zeros), which else appear in the first step, for a checkpoint to fill."""
    optimizer = deepspeed_0_19.torch_optimizer(engine)
    state = optimizer.state
    group = optimizer.param_groups[0]
    on_device = group.get("fused") or group.get("capturable")
    for i, flat in enumerate(deepspeed_0_19.masters(engine)):
        with deepspeed_0_19.sub_group(engine.optimizer, i, changed=True):
            for key in keys:
                state[flat].setdefault(key, torch.zeros_like(flat.data))
        for key in scalars:
            state[flat].setdefault(key, torch.zeros((), device=flat.device if on_device else "cpu"))


def set_scalars(engine: Any, values: dict[str, float]) -> None:
    """Set state that is one number (Adam's step) for all parameters."""
    for state in deepspeed_0_19.torch_optimizer(engine).state.values():
        for key, value in values.items():
            state[key] = state[key].new_tensor(value)


def gradients(engine: Any, groups: list[dict]) -> tuple[dict[str, list[Tensor]], bool]:
    """This rank's averaged gradients by component between the last backward pass and the step, to be scaled in place.

    Args:
        groups: `optim.parameter_groups` as they were before DeepSpeed replaced their parameters by flat ones.

    Returns:
        Component -> pieces; and whether the pieces of all ranks together are the gradient (else each rank holds all).
    """
    pieces: dict[str, list[Tensor]] = {group["component"]: [] for group in groups}
    parts = deepspeed_0_19.gradients(engine)
    if parts is None:
        for group in groups:
            pieces[group["component"]] += [p.grad for p in group["params"] if p.grad is not None]
        return pieces, False
    for group, tensors in parts:
        pieces[groups[group]["component"]] += tensors
    return pieces, True
