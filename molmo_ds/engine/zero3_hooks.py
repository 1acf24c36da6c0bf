"""What ZeRO-3's hooks do for nothing is left out.

A GPU waits for a host that is busy with hooks; docs/evidence/gpu.md has the times. `engine` is what
deepspeed.initialize returned.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_module, z3_leaf_module
from torch import Tensor, nn

from molmo_ds.engine import deepspeed_0_19
from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.vision import VisionLayer


def lighten(engine: Any, by_layer: bool) -> None:
    """Lighten the hooks of an engine under ZeRO-3; under another stage only the ranges for profilers go.

    Args:
        by_layer: ViT blocks and decoder layers are gathered as one each, not module by module; not in a compiled run.
    """
    deepspeed_0_19.mark_no_ranges()
    hooks = deepspeed_0_19.hooks_of_stage_3(engine)
    if hooks is None:
        return
    layers = [x for x in engine.module.modules() if isinstance(x, DecoderLayer | VisionLayer)]
    units = [layer for layer in layers if by_layer and _can_be_one(layer)]
    for unit in units:
        set_z3_leaf_module(unit, True)
    _remove_idle_hooks(engine.module, hooks, units)
    for module in engine.module.modules():
        for function in deepspeed_0_19.around_backward(module):
            unbound = _unbound(function)
            # a compiled layer that got its own input back would be compiled again in evaluation
            function.apply = _where_learnt(unbound) if by_layer else unbound
    function = deepspeed_0_19.LINEAR
    if units:
        function.apply = _unbound(function)
    elif "apply" in vars(function):  # of an engine before, which a compiled run would be cut at
        del function.apply
    deepspeed_0_19.wait_for_layers()
    deepspeed_0_19.gather_small_ones_at_once(engine.optimizer)


def _can_be_one(layer: nn.Module) -> bool:
    # Experts that are spread have groups of their own, whose order DeepSpeed takes from a set; a compiled part is
    # gathered as one already; NVMe has buffers for a few weights only.
    parameters = list(layer.parameters())
    groups = {id(deepspeed_0_19.gathered_over(parameter)) for parameter in parameters}
    on_nvme = any(map(deepspeed_0_19.lies_on_nvme, parameters))
    return len(groups) == 1 and not on_nvme and not any(map(z3_leaf_module, layer.modules()))


def _remove_idle_hooks(model: nn.Module, hooks: list[Any], units: list[nn.Module]) -> None:
    # of modules within a unit, and of those without weights of their own, which gather nothing
    within = {id(module) for unit in units for module in unit.modules() if module is not unit}
    idle = set()
    for module in model.modules():
        owns = z3_leaf_module(module) or any(True for _ in module.parameters(recurse=False))
        if id(module) in within or not (owns or module is model):
            idle |= {id(module._forward_hooks), id(module._forward_pre_hooks)}
    for handle in hooks:
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
