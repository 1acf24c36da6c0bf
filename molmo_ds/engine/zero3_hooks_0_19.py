"""What ZeRO-3's hooks do for nothing is left out: the second of two files with private names of DeepSpeed.

A GPU waits for a host that is busy with hooks; docs/evidence/gpu.md has the times. As in engine/deepspeed_0_19.py,
`engine` is what deepspeed.initialize returned, and `zero` its optimizer.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import linear
from deepspeed.runtime.zero.partition_parameters import (
    AllGatherCoalescedHandle,
    ZeroParamStatus,
    get_allgather_dtype,
)
from deepspeed.utils import nvtx, set_z3_leaf_module, z3_leaf_module
from torch import Tensor, nn

from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.vision import VisionLayer

WAIT = AllGatherCoalescedHandle.wait


def lighten(engine: Any, by_layer: bool) -> None:
    """Lighten the hooks of an engine under ZeRO-3; under another stage only the ranges for profilers go.

    Args:
        by_layer: ViT blocks and decoder layers are gathered as one each, not module by module; not in a compiled run.
    """
    nvtx.enable_nvtx = False  # ranges for NVIDIA's profilers around every function of DeepSpeed
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return
    layers = [x for x in engine.module.modules() if isinstance(x, DecoderLayer | VisionLayer)]
    units = [layer for layer in layers if by_layer and _can_be_one(layer)]
    for unit in units:
        set_z3_leaf_module(unit, True)
    _remove_idle_hooks(engine.module, offload, units)
    for module in engine.module.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            if function := vars(module).get(name):
                unbound = _unbound(function)
                # a compiled layer that got its own input back would be compiled again in evaluation
                function.apply = _where_learnt(unbound) if by_layer else unbound
    function = linear.LinearFunctionForZeroStage3
    if units:
        function.apply = _unbound(function)
    elif "apply" in vars(
        function
    ):  # of an engine before this one, which a compiled run would be cut at
        del function.apply
    AllGatherCoalescedHandle.wait = _wait
    _gather_small_ones_at_once(engine.optimizer)


def _can_be_one(layer: nn.Module) -> bool:
    # Experts that are spread have groups of their own, whose order DeepSpeed takes from a set; a compiled part is
    # gathered as one already; NVMe has buffers for a few weights only.
    parameters = list(layer.parameters())
    groups = {id(parameter.ds_process_group) for parameter in parameters}
    on_nvme = any(parameter.ds_tensor.final_location == "nvme" for parameter in parameters)
    return len(groups) == 1 and not on_nvme and not any(map(z3_leaf_module, layer.modules()))


def _remove_idle_hooks(model: nn.Module, offload: Any, units: list[nn.Module]) -> None:
    # of modules within a unit, and of those without weights of their own, which gather nothing
    within = {id(module) for unit in units for module in unit.modules() if module is not unit}
    idle = set()
    for module in model.modules():
        owns = z3_leaf_module(module) or any(True for _ in module.parameters(recurse=False))
        if id(module) in within or not (owns or module is model):
            idle |= {id(module._forward_hooks), id(module._forward_pre_hooks)}
    for handle in (*offload.forward_hooks, *offload.backward_hooks):
        if id(handle.hooks_dict_ref()) in idle:
            handle.remove()


def _unbound(function: Any) -> Callable:
    # torch would bind the arguments to the signature at each call
    return super(torch.autograd.Function, function).apply


def _where_learnt(apply: Callable) -> Callable:
    # a tensor without a gradient has no backward pass before or after which something could be done
    def applied(x: Tensor) -> Tensor:
        return apply(x) if x.requires_grad else x

    return applied


def _wait(handle: AllGatherCoalescedHandle, handle_dependency: bool = True) -> None:
    # the same as DeepSpeed's, which makes a tensor for each weight and rank: here one for each weight
    special = handle.quantization or handle.use_secondary_tensor or not handle_dependency
    if handle.complete or special:
        WAIT(handle, handle_dependency)
        return
    handle.allgather_handle.wait()
    first = handle.partitions[0]
    every = first.as_strided((handle.world_size, first.numel()), (first.numel(), 1))
    start = 0
    for parameter in handle.params:
        size = parameter.ds_tensor.ds_numel
        whole = every.narrow(1, start, size).reshape(-1).narrow(0, 0, parameter.ds_numel)
        parameter.data = whole.view(parameter.ds_shape).to(parameter.ds_tensor.dtype)
        parameter.ds_status = ZeroParamStatus.AVAILABLE
        start += size
    if not get_accelerator().is_synchronized_device():
        first.record_stream(get_accelerator().current_stream())
    handle.complete = True


def _gather_small_ones_at_once(zero: Any) -> None:
    # those that stay gathered, after each step; DeepSpeed has a collective for each
    small = zero.persistent_parameters
    if not small:
        return
    one_by_one = small[0].all_gather

    def all_gather(param_list: Any = None, async_op: bool = False, hierarchy: int = 0) -> Any:
        if param_list is not small or async_op or not all(map(_is_plain, small)):
            return one_by_one(param_list, async_op, hierarchy)
        away = [x for x in small if x.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        small[0].all_gather_coalesced(away).wait()
        return None

    small[0].all_gather = all_gather


def _is_plain(parameter: nn.Parameter) -> bool:
    # neither quantised nor copied within a node (hpZ, whose copy is older than the step), nor sent in another type
    part = parameter.ds_tensor
    if hasattr(part, "ds_quant_scale") or parameter.ds_secondary_tensor is not None:
        return False
    return get_allgather_dtype(parameter, part) == part.dtype
