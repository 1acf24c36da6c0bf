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

from molmo_ds.engine import nvme
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
    optimizer = engine.basic_optimizer
    if hasattr(parameter, "ds_id"):  # ZeRO-3: rank r holds elements [r * size, (r + 1) * size), the last ones padded
        shape, total = tuple(parameter.ds_shape), parameter.ds_numel
        length = parameter.ds_tensor.ds_numel
        start = engine.optimizer._get_param_partition_rank(parameter) * length
        length = max(0, min(length, total - start))
        if not length:
            return
        if not parameter.requires_grad:
            yield Fragment(
                name, shape, start, {"weight": parameter.ds_tensor.data.narrow(0, 0, length)}, {}, False, False
            )
            return
        group, offset, _ = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
        flat = engine.optimizer.fp32_partitioned_groups_flat[group]
        tensors, scalars = _state(optimizer, flat, offset, length)
        yield Fragment(name, shape, start, tensors, scalars, False, True)
        return
    shape = tuple(parameter.shape)
    if hasattr(parameter, "_hp_mapping"):  # ZeRO-1 and 2: one flat vector per group, cut into equal partitions
        mapping = parameter._hp_mapping
        if mapping is None or mapping.hp_fragment_address.numel == 0:
            return
        flat = _flat_partitions(engine.optimizer)[mapping.param_group_index]
        address = mapping.hp_fragment_address
        tensors, scalars = _state(optimizer, flat, address.start, address.numel)
        yield Fragment(name, shape, mapping.lp_fragment_address.start, tensors, scalars, False, True)
        return
    flat = _master(engine, parameter)  # ZeRO-0 or frozen
    tensors, scalars = _state(optimizer, flat, 0, parameter.numel())
    yield Fragment(name, shape, 0, tensors, scalars, True, parameter.requires_grad)


def _state(optimizer: torch.optim.Optimizer, flat: Tensor, start: int, length: int) -> tuple[dict, dict]:
    tensors, scalars = {"weight": flat.data.view(-1).narrow(0, start, length)}, {}
    for key, value in optimizer.state.get(flat, {}).items():
        if torch.is_tensor(value) and value.numel() == flat.numel() and value.dim():
            tensors[key] = value.view(-1).narrow(0, start, length)
        else:
            scalars[key] = float(value)
    return tensors, scalars


def _flat_partitions(zero: Any) -> list[Tensor] | None:
    bf16 = getattr(zero, "fp32_groups_flat_partition", None)
    return getattr(zero, "single_partition_of_fp32_groups", None) if bf16 is None else bf16


def _master(engine: Any, parameter: nn.Parameter) -> Tensor:
    # DeepSpeed's half-precision optimizer of ZeRO-0 keeps a list of fp32 copies beside the list of parameters
    pairs = zip(getattr(engine.optimizer, "fp16_groups", ()), getattr(engine.optimizer, "fp32_groups", ()))
    for halves, masters in pairs:
        for half, master in zip(halves, masters):
            if half is parameter:
                return master
    return parameter


def create_state(engine: Any, keys: set[str], scalars: set[str]) -> None:
    """Make the optimizer's state tensors (zeros), which else appear in the first step, for a checkpoint to fill."""
    zero, state = engine.optimizer, engine.basic_optimizer.state
    group = engine.basic_optimizer.param_groups[0]
    on_device = group.get("fused") or group.get("capturable")
    flats = getattr(zero, "fp32_partitioned_groups_flat", None) or _flat_partitions(zero)
    if flats is None:
        flats = [flat for group in engine.basic_optimizer.param_groups for flat in group["params"]]
    for i, flat in enumerate(flats):
        with nvme.sub_group(zero, i, changed=True):
            for key in keys:
                state[flat].setdefault(key, torch.zeros_like(flat.data))
        for key in scalars:
            state[flat].setdefault(key, torch.zeros((), device=flat.device if on_device else "cpu"))


def set_scalars(engine: Any, values: dict[str, float]) -> None:
    """Set state that is one number (Adam's step) for all parameters."""
    for state in engine.basic_optimizer.state.values():
        for key, value in values.items():
            state[key] = state[key].new_tensor(value)


@torch.no_grad()
def publish(engine: Any) -> None:
    """Carry changed fp32 weights into the weights that the forward pass reads."""
    zero = engine.optimizer
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        zero._partition_all_parameters()
        for parameter in engine.module.parameters():
            parameter.ds_secondary_tensor = None  # hpZ's copy within a node; DeepSpeed forgets those of frozen ones
        for group in range(len(zero.fp16_groups)):
            with nvme.sub_group(zero, group, changed=False):
                zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:  # small ones that ZeRO-3 keeps gathered
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    elif hasattr(zero, "update_lp_params"):
        zero.update_lp_params()
    else:
        for halves, masters in zip(getattr(zero, "fp16_groups", ()), getattr(zero, "fp32_groups", ())):
            for half, master in zip(halves, masters):
                half.data.copy_(master.data)


def gradients(engine: Any, groups: list[dict]) -> tuple[dict[str, list[Tensor]], bool]:
    """This rank's averaged gradients by component between the last backward pass and the step, to be scaled in place.

    Args:
        groups: `optim.parameter_groups` as they were before DeepSpeed replaced their parameters by flat ones.

    Returns:
        Component -> pieces; and whether the pieces of all ranks together are the gradient (else each rank holds all).
    """
    zero, pieces = engine.optimizer, {group["component"]: [] for group in groups}
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        swapped = nvme.gradients(zero) if nvme.used(zero) else ()
        for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
            part = groups[zero.sub_group_to_group_id[i]]["component"]
            if swapped:
                pieces[part].append(swapped[i])
            else:
                pieces[part] += [flat.grad] if zero.offload_optimizer else zero.averaged_gradients[i]
        return pieces, True
    if hasattr(zero, "fp32_groups_gradient_flat_partition"):
        for group, flat in zip(groups, zero.fp32_groups_gradient_flat_partition):
            pieces[group["component"]].append(flat)
        return pieces, True
    if hasattr(zero, "single_partition_of_fp32_groups"):
        for i, (group, flat) in enumerate(zip(groups, zero.single_partition_of_fp32_groups)):
            pieces[group["component"]] += [flat.grad] if zero.cpu_offload else zero.averaged_gradients[i]
        return pieces, True
    for group in groups:
        pieces[group["component"]] += [p.grad for p in group["params"] if p.grad is not None]
    return pieces, False
