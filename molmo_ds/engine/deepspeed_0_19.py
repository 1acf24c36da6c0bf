"""Every private name of DeepSpeed that we touch, behind small functions.

DeepSpeed promises none of them. engine/deepspeed_names.py says where each is defined, and
tests/engine/test_deepspeed_names.py looks for them in the installed version and names the one that vanished.

Words: `engine` is what deepspeed.initialize returned, `zero` its optimizer (of whatever ZeRO stage). The optimizer
steps *masters*: flat fp32 tensors of which a parameter is a slice, or under ZeRO-0 the parameters themselves.

In this order: where parameters lie, NVMe, hooks and gathers of ZeRO-3, pipeline, tensor and expert parallelism, ops.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from deepspeed import ops
from deepspeed.accelerator import get_accelerator
from deepspeed.comm import comm
from deepspeed.pipe import DualPipeVModule, LayerSpec, PipelineModule
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.utils import partition_balanced
from deepspeed.runtime.zero import linear
from deepspeed.runtime.zero.partition_parameters import (
    AllGatherCoalescedHandle,
    ZeroParamStatus,
    get_allgather_dtype,
)
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups, nvtx
from torch import Tensor, nn

from molmo_ds.engine.place import Place

MODEL_STEP = "_take_model_step"  # the method of an engine that ends in the optimizer's step
WAIT = AllGatherCoalescedHandle.wait
LINEAR = linear.LinearFunctionForZeroStage3
MUON = {  # modules of DeepSpeed's Muon, which is ours by torch -> what others import from each
    "deepspeed.runtime.zero.muon.muon_optimizer": "MuonWithAuxAdam",
    "deepspeed.runtime.zero.muon.original_muon": "muon_update",
}
balanced = partition_balanced  # costs, parts -> parts + 1 bounds: the highest cost is least
CONFIGURE_EXPERTS = DeepSpeedZeroOptimizer._configure_moe_settings


def is_split(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 keeps a part of it on each rank."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Its shape, also while ZeRO-3 keeps only a part."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def place(engine: Any, parameter: nn.Parameter) -> Place | None:
    """The place of this rank's part of a parameter; None if it keeps nothing of it."""
    if is_split(parameter):
        return _place_of_stage_3(engine.optimizer, parameter)
    # ZeRO-1 and 2: one flat vector per group, cut into equal partitions
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is None or mapping.hp_fragment_address.numel == 0:
            return None
        master = _flat_partitions(engine.optimizer)[mapping.param_group_index]
        address = mapping.hp_fragment_address
        return Place(mapping.lp_fragment_address.start, address.numel, master, address.start, True)
    return Place(0, parameter.numel(), _master_of_stage_0(engine, parameter), 0, False)  # or frozen


def _place_of_stage_3(zero: Any, parameter: nn.Parameter) -> Place | None:
    # rank r keeps elements [r * length, (r + 1) * length), of which the last ones are padding
    length = parameter.ds_tensor.ds_numel
    start = zero._get_param_partition_rank(parameter) * length
    size = max(0, min(length, parameter.ds_numel - start))
    if not size:
        return None
    if not parameter.requires_grad:
        return Place(start, size, parameter.ds_tensor.data, 0, True)
    group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
    return Place(start, size, zero.fp32_partitioned_groups_flat[group], offset, True)


def _flat_partitions(zero: Any) -> list[Tensor] | None:
    # of ZeRO-1 in bf16, or of ZeRO-1 and 2
    bf16 = getattr(zero, "fp32_groups_flat_partition", None)
    return getattr(zero, "single_partition_of_fp32_groups", None) if bf16 is None else bf16


def _master_of_stage_0(engine: Any, parameter: nn.Parameter) -> Tensor:
    copies = _copies_of_stage_0(engine.optimizer)
    return next((master for half, master in copies if half is parameter), parameter)


def _copies_of_stage_0(zero: Any) -> Iterator[tuple[Tensor, Tensor]]:
    # the half-precision optimizer of ZeRO-0 keeps a list of fp32 copies next to the list of parameters
    for halves, masters in zip(getattr(zero, "fp16_groups", ()), getattr(zero, "fp32_groups", ())):
        yield from zip(halves, masters)


def masters(engine: Any) -> list[Tensor]:
    """The tensors that the optimizer steps: the keys of its state."""
    zero = engine.optimizer
    flats = getattr(zero, "fp32_partitioned_groups_flat", None) or _flat_partitions(zero)
    groups_of_torch = engine.basic_optimizer.param_groups
    return [x for group in groups_of_torch for x in group["params"]] if flats is None else flats


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer of torch that does the step."""
    return engine.basic_optimizer


@torch.no_grad()
def publish(engine: Any) -> None:
    """Carry changed masters into the weights that the forward pass reads."""
    zero = engine.optimizer
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        zero._partition_all_parameters()
        for parameter in engine.module.parameters():
            # hpZ's copy within a node; DeepSpeed forgets those of frozen ones
            parameter.ds_secondary_tensor = None
        for group in range(len(zero.fp16_groups)):
            with sub_group(zero, group, changed=False):
                zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:  # small ones that ZeRO-3 keeps gathered
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    elif hasattr(zero, "update_lp_params"):
        zero.update_lp_params()
    else:
        for half, master in _copies_of_stage_0(zero):
            half.data.copy_(master.data)


def gradients(engine: Any) -> list[tuple[int, list[Tensor]]] | None:
    """(group of the optimizer, this rank's part of its gradients) between the last backward pass and the step.

    None under ZeRO-0, where every parameter has its whole gradient.
    """
    zero = engine.optimizer
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        on_nvme = collected(zero) if uses_nvme(zero) else ()
        out = []
        for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
            if on_nvme:
                pieces = [on_nvme[i]]
            else:
                pieces = [flat.grad] if zero.offload_optimizer else zero.averaged_gradients[i]
            out.append((zero.sub_group_to_group_id[i], pieces))
        return out
    if hasattr(zero, "fp32_groups_gradient_flat_partition"):
        return [(i, [flat]) for i, flat in enumerate(zero.fp32_groups_gradient_flat_partition)]
    if hasattr(zero, "single_partition_of_fp32_groups"):
        flats = zero.single_partition_of_fp32_groups
        return [
            (i, [f.grad] if zero.cpu_offload else zero.averaged_gradients[i])
            for i, f in enumerate(flats)
        ]
    return None


def uses_nvme(zero: Any) -> bool:
    """Whether DeepSpeed's optimizer keeps state or weights on NVMe."""
    return getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False)


def lies_on_nvme(parameter: nn.Parameter) -> bool:
    """Whether this rank's part of a weight under ZeRO-3 is a file between its uses."""
    return parameter.ds_tensor.final_location == "nvme"


def sub_group_of(zero: Any) -> dict[int, int]:
    """id of a parameter that learns -> its sub-group of ZeRO-3's optimizer."""
    return {id(parameter): i for i, group in enumerate(zero.fp16_groups) for parameter in group}


def sub_group(zero: Any, index: int, changed: bool) -> AbstractContextManager:
    """A sub-group of the optimizer's state is in memory inside, and is written back if it is `changed` there."""
    if not getattr(zero, "swap_optimizer", False) or not zero._swappable_optimizer_subgroup(index):
        return nullcontext()
    write, drop = zero._optimizer_states_and_gradient_swap_out, zero._release_swap_buffers
    return _read(zero._optimizer_states_and_gradient_swap_in, write if changed else drop, index)


def frozen_weight(parameter: nn.Parameter, changed: bool) -> AbstractContextManager:
    """The same for this rank's part of one frozen weight."""
    if not lies_on_nvme(parameter):
        return nullcontext()
    swapper = parameter.nvme_swapper
    write, drop = swapper.swap_out_and_release, swapper.remove_partition_and_release_buffers
    return _read(partial(swapper.swap_in, async_op=False), write if changed else drop, [parameter])


@contextmanager
def _read(read: Callable, after: Callable, what: Any) -> Iterator[None]:
    read(what)
    try:
        yield
    finally:
        after(what)


def settle(zero: Any) -> None:
    """End the last pass's prefetch and release every gathered weight, so that the files are what counts."""
    zero._partition_all_parameters()
    for parameter in zero.module.parameters():
        if lies_on_nvme(parameter):
            parameter.nvme_swapper.synchronize_reads()
            parameter.nvme_swapper.remove_partition_and_release_buffers([parameter])


def collected(zero: Any) -> tuple[Tensor, ...]:
    """This rank's gradients, a view for each sub-group, as they are collected before `hand_over`."""
    return zero.grad_partitions_flat_buffer.split(zero.fp16_partitioned_groups_flat_numel)


def hand_over(engine: Any) -> None:
    """Give the gradients (clipped) to the step that follows.

    DeepSpeed itself would write those of large weights to NVMe in the last backward pass, out of reach of clipping,
    and read them back, though they never left the memory.
    """
    zero = engine.optimizer
    engine.set_gradient_accumulation_boundary(True)
    for i, (flat, gradient) in enumerate(zip(zero.fp32_partitioned_groups_flat, collected(zero))):
        # is it finite?
        zero.norm_for_param_grads[zero.get_param_id(zero.fp16_groups[i][0])] = gradient.norm()
        if zero._swappable_optimizer_subgroup(i):
            zero.optimizer_swapper.swap_params_info[flat.ds_id].unswapped_gradients = {0: gradient}
        elif zero.offload_optimizer:
            flat.grad.copy_(gradient)


def mark_no_ranges() -> None:
    """Leave out the ranges for NVIDIA's profilers around every function of DeepSpeed."""
    nvtx.enable_nvtx = False


def hooks_of_stage_3(engine: Any) -> list[Any] | None:
    """The handles of the hooks that gather and release weights; None under another stage."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    return None if offload is None else [*offload.forward_hooks, *offload.backward_hooks]


def gathered_over(parameter: nn.Parameter) -> Any:
    """The group over which ZeRO-3 spreads a weight."""
    return parameter.ds_process_group


def around_backward(module: nn.Module) -> list[Any]:
    """The autograd functions that ZeRO-3 runs before and after a module's backward pass, made at its first forward."""
    return [vars(module)[name] for name in ("pre_bwd_fn", "post_bwd_fn") if name in vars(module)]


def wait_for_layers() -> None:
    """Let a gather of several weights make one tensor for each, where DeepSpeed makes one for each weight and rank."""
    AllGatherCoalescedHandle.wait = _wait


def _wait(handle: AllGatherCoalescedHandle, handle_dependency: bool = True) -> None:
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


def gather_small_ones_at_once(zero: Any) -> None:
    """Gather the weights that stay gathered by one collective after each step; DeepSpeed has one for each."""
    small = zero.persistent_parameters
    if not small:
        return
    one_by_one = small[0].all_gather

    def all_gather(param_list: Any = None, async_op: bool = False, hierarchy: int = 0) -> Any:
        if param_list is not small or async_op or not all(map(_is_plain, small)):
            return one_by_one(param_list, async_op, hierarchy)
        away = [x for x in small if x.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        for parameter in away:  # hpZ's copies within a node, older than the step, are made again
            parameter.ds_secondary_tensor = None
        small[0].all_gather_coalesced(away).wait()
        return None

    small[0].all_gather = all_gather


def _is_plain(parameter: nn.Parameter) -> bool:  # neither quantised nor sent in another type
    part = parameter.ds_tensor
    same = get_allgather_dtype(parameter, part) == part.dtype
    return same and not hasattr(part, "ds_quant_scale")


class Stages(PipelineModule):
    """DeepSpeed's module, cut where we say."""

    def __init__(self, specs: list[LayerSpec], bounds: list[int], **arguments: Any) -> None:
        self.bounds = bounds
        super().__init__(specs, **arguments)

    def _partition_layers(self, method: str = "") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = self.bounds
        self._set_bounds(self.bounds[stage], self.bounds[stage + 1])


class FoldedStages(DualPipeVModule, Stages):
    """DualPipeV's module: rank r of P holds parts r and 2P - 1 - r of our 2P, so the first has data and loss."""


def take_no_norm(engine: Any) -> None:
    """Make DeepSpeed find 0 for the norm of its own clipping, which is off.

    It would read all gradients, and in a pipeline, whose stages differ in groups, its collective per group would hang.
    """
    zero = engine.optimizer
    zero.scaled_global_norm = lambda *_: torch.zeros(())  # ZeRO-1 and 2
    zero.get_grad_norm_direct = lambda *_: torch.zeros(())  # ZeRO-3


def before_update(engine: Any, function: Callable[[], None]) -> None:
    """Let a pipeline engine call `function` just before its optimizer's step."""
    steps = engine._INSTRUCTION_MAP[schedule.OptimizerStep]

    def step(pipeline: Any) -> None:
        function()
        steps(pipeline)

    engine._INSTRUCTION_MAP = {**engine._INSTRUCTION_MAP, schedule.OptimizerStep: step}


def fresh_buffers(engine: Any, device: torch.device) -> None:
    """Let a pipeline engine receive into a new tensor each time.

    It gives a buffer again for another type, which crashes a stage that receives from both sides.
    """
    nothing = torch.zeros((), device=device)
    engine._allocate_or_extend_buffers = lambda _, shape, dtype: nothing.new_empty(
        shape, dtype=dtype
    )


def tensor_groups(size: int) -> list[Any]:
    """AutoTP's groups of this rank: those that share the decoder, and those that read different samples."""
    groups._init_tp_mesh_device(tensor_model_parallel_size=size)
    return [groups.get_tensor_model_parallel_group(), groups.get_data_parallel_group()]


def compare_no_inputs(engine: Any) -> None:
    """Take AutoTP's comparison of the first batch away, which knows no Batch."""
    engine.first_dataloader_check.remove()


def expert_groups(size: int) -> tuple[Any, Any]:
    """AutoEP's groups of this rank: those over which the experts are spread, and those that hold the same ones."""
    name = f"ep_size_{size}"
    return groups._get_expert_parallel_group(name), groups._get_expert_data_parallel_group(name)


def group_of_experts(parameter: nn.Parameter) -> str | None:
    """AutoEP's name of the group over which a parameter is spread; None if it is none of an expert."""
    return getattr(parameter, "group_name", None)


def expert_layers(model: nn.Module) -> int:
    """Layers of experts that AutoEP has replaced."""
    return sum(getattr(module, "_is_autoep_layer", False) for module in model.modules())


def allow_frozen_experts() -> None:
    """Make ZeRO 1 and 2 take a model whose experts are all frozen."""
    DeepSpeedZeroOptimizer._configure_moe_settings = _configure_experts


def _configure_experts(zero: DeepSpeedZeroOptimizer) -> None:
    zero.has_moe_layers = any(zero.is_moe_group(group) for group in zero.optimizer.param_groups)
    if zero.has_moe_layers:
        CONFIGURE_EXPERTS(zero)


def compile_no_ops() -> None:
    """Make DeepSpeed take every op as one that cannot be compiled; it would try compilers at each start."""
    ops.__compatible_ops__ = {}


def backend() -> Any:
    """The object whose methods all collectives of DeepSpeed go through."""
    return comm.cdb
