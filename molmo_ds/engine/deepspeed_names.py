"""The private names of DeepSpeed 0.19 that engine/deepspeed_0_19.py touches, by the module that defines them."""

NAMES = {  # module -> names that are defined, or set on an object, there
    "deepspeed.comm.comm": "cdb",
    "deepspeed.module_inject.auto_ep_layer": "_is_autoep_layer group_name",
    "deepspeed.ops": "__compatible_ops__",
    "deepspeed.runtime.bf16_optimizer": "fp32_groups_flat_partition fp32_groups_gradient_flat_partition",
    "deepspeed.runtime.engine": "_take_model_step basic_optimizer first_dataloader_check",
    "deepspeed.runtime.fp16.unfused_optimizer": "fp16_groups fp32_groups",
    "deepspeed.runtime.pipe.engine": "_INSTRUCTION_MAP _allocate_or_extend_buffers",
    "deepspeed.runtime.pipe.module": "_partition_layers _set_bounds _topo global_rank parts",
    "deepspeed.runtime.pipe.schedule": "OptimizerStep",
    "deepspeed.runtime.swap_tensor.optimizer_utils": "swap_params_info unswapped_gradients",
    "deepspeed.runtime.swap_tensor.partitioned_param_swapper": """
        remove_partition_and_release_buffers swap_in swap_out_and_release synchronize_reads
    """,
    "deepspeed.runtime.utils": "partition_balanced",
    "deepspeed.runtime.zero.linear": "LinearFunctionForZeroStage3",
    "deepspeed.runtime.zero.muon.muon_optimizer": "MuonWithAuxAdam",
    "deepspeed.runtime.zero.muon.original_muon": "muon_update",
    "deepspeed.runtime.zero.parameter_offload": "backward_hooks forward_hooks post_bwd_fn pre_bwd_fn",
    "deepspeed.runtime.zero.partition_parameters": """
        AllGatherCoalescedHandle allgather_handle ds_id ds_numel ds_process_group ds_quant_scale
        ds_secondary_tensor ds_shape ds_status ds_tensor final_location get_allgather_dtype nvme_swapper
        use_secondary_tensor
    """,
    "deepspeed.runtime.zero.stage3": """
        _get_param_partition_rank _optimizer_states_and_gradient_swap_in
        _optimizer_states_and_gradient_swap_out _partition_all_parameters
        _reassign_or_swap_out_partitioned_parameters _release_swap_buffers _swappable_optimizer_subgroup
        averaged_gradients fp16_groups fp16_partitioned_groups_flat_numel fp32_partitioned_groups_flat
        get_grad_norm_direct get_param_id grad_partitions_flat_buffer grad_position module norm_for_param_grads
        offload_optimizer optimizer_swapper parameter_offload params_in_nvme_and_cpu persistent_parameters
        sub_group_to_group_id swap_optimizer
    """,
    "deepspeed.runtime.zero.stage_1_and_2": """
        _configure_moe_settings averaged_gradients cpu_offload has_moe_layers is_moe_group
        scaled_global_norm single_partition_of_fp32_groups update_lp_params
    """,
    "deepspeed.utils.groups": "_get_expert_data_parallel_group _get_expert_parallel_group _init_tp_mesh_device",
    "deepspeed.utils.mixed_precision_linkage": "_hp_mapping",
    "deepspeed.utils.nvtx": "enable_nvtx",
    "deepspeed.utils.tensor_fragment": "hp_fragment_address lp_fragment_address param_group_index",
}
