"""A strategy file as typed fields: each of ours by hand."""

from pathlib import Path

import pytest

from molmo_ds.engine.strategy import Offload, Zero, parse, read_strategy

ROOT = Path(__file__).parents[2]
# engine, stages, schedule, sequence, tensor, experts, ZeRO stage, hpZ, devices
FIELDS = {
    "pipe_dualpipev": ("pipeline", 2, "dualpipev", 1, 1, 1, 1, 1, {"none"}),
    "pipe_zero1": ("pipeline", 2, None, 1, 1, 1, 1, 1, {"none"}),
    "pipe_zero1_ep": ("pipeline", 2, None, 1, 1, 2, 1, 1, {"none"}),
    "zero0": ("zero", 1, None, 1, 1, 1, 0, 1, {"none"}),
    "zero1": ("zero", 1, None, 1, 1, 1, 1, 1, {"none"}),
    "zero2": ("zero", 1, None, 1, 1, 1, 2, 1, {"none"}),
    "zero2_ep": ("zero", 1, None, 1, 1, 2, 2, 1, {"none"}),
    "zero3": ("zero", 1, None, 1, 1, 1, 3, 1, {"none"}),
    "zero3_ep": ("zero", 1, None, 1, 1, 2, 3, 1, {"none"}),
    "zero3_ep_offload": ("zero", 1, None, 1, 1, 2, 3, 1, {"cpu"}),
    "zero3_ep_tp": ("zero", 1, None, 1, 2, 2, 3, 1, {"none"}),
    "zero3_hpz": ("zero", 1, None, 1, 1, 1, 3, 2, {"none"}),
    "zero3_nvme": ("zero", 1, None, 1, 1, 1, 3, 1, {"nvme"}),
    "zero3_offload": ("zero", 1, None, 1, 1, 1, 3, 1, {"cpu"}),
    "zero3_sp": ("sequence", 1, None, 2, 1, 1, 3, 1, {"none"}),
    "zero3_sp_ep": ("sequence", 1, None, 2, 1, 2, 3, 1, {"none"}),
    "zero3_tp": ("zero", 1, None, 1, 2, 1, 3, 1, {"none"}),
    "zero3_tp_offload": ("zero", 1, None, 1, 2, 1, 3, 1, {"cpu"}),
}


def test_none_is_left_out() -> None:
    assert sorted(FIELDS) == sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    s = read_strategy(f"ds_configs/{name}.json")
    found = (
        s.engine,
        s.stages,
        s.schedule,
        s.sequence,
        s.tensor,
        s.experts,
        s.stage,
        s.zero.hpz,
        s.zero.devices,
    )
    assert found == FIELDS[name]
    assert s.name == name and "molmo_ds" not in s.ds
    assert s.folded == (s.schedule == "dualpipev")


def test_what_is_left_to_the_run_has_deepspeeds_size() -> None:
    block = {
        "reduce_bucket_size": "auto",
        "zero_hpz_partition_size": "auto",
        "stage3_max_live_parameters": 7,
    }
    block["offload_optimizer"] = {"device": "cpu", "pipeline_write": True}
    strategy = parse(
        "x", {"zero_optimization": block, "expert_parallel": {"enabled": False, "autoep_size": 4}}
    )
    assert strategy.experts == 1
    assert strategy.zero == Zero(live_parameters=7, optimizer=Offload(device="cpu", ahead=True))
    assert strategy.zero.reduce_bucket == 500_000_000 and strategy.zero.offloads
