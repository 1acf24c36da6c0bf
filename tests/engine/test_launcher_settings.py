"""Settings of accelerate launch that do not count are said, once, with both values."""

import os
from dataclasses import replace

import pytest

from molmo_ds.config import OptimConfig, RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.engine.launching import launchers
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks

RUN = RunConfig(global_batch=8, micro_batch=2, precision="fp32", strategy="ds_configs/zero3.json")
TOLD = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
    "ACCELERATE_GRADIENT_CLIPPING": "0.5",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        *TOLD,
        *launchers.WHOLE,
        "ACCELERATE_DYNAMO_BACKEND",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    ]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")


def said(config: RunConfig) -> list[str]:
    return launchers.ignored(read_strategy(config.strategy), config)


def test_other_launchers_are_told_nothing() -> None:
    assert said(RUN) == []


def test_each_setting_with_both_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    (sentence,) = said(RUN)
    for part in (
        "--mixed_precision bf16 (the run: precision=fp32, fp32 here)",
        "--zero_stage 2 (the run: 3)",
        # 8 sequences = 2 ranks x 2 a micro-step x 2
        "--gradient_accumulation_steps 8 (the run: 2)",
        "--gradient_clipping 0.5 (the run: optim.max_grad_norm=1.0)",
        "--offload_optimizer_device cpu (the run: none)",
        "because strategy=ds_configs/zero3.json counts; use strategy=accelerate",
    ):
        assert part in sentence
    assert "\n" not in sentence and sentence.endswith(".")


def test_what_agrees_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    agreeing = replace(
        RUN,
        precision="bf16",
        global_batch=32,
        optim=OptimConfig(max_grad_norm=0.5),
        strategy="ds_configs/zero2.json",
    )
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    assert said(agreeing) == []


def test_with_strategy_accelerate_its_deepspeed_settings_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    (sentence,) = said(replace(RUN, strategy="accelerate"))
    assert (
        "--mixed_precision bf16" in sentence
        and "zero_stage" not in sentence
        and "clipping 0.5" not in sentence
    )


def test_other_engines_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero2.json")
    (sentence,) = said(RUN)
    assert (
        "--use_fsdp" in sentence
        and "--dynamo_backend inductor (the run: compile=false)" in sentence
    )
    assert (
        "--deepspeed_config_file ds_configs/zero2.json (the run: ds_configs/zero3.json)" in sentence
    )


LEFT = {  # what accelerate launch leaves for --cpu, --dynamo_backend, --use_fsdp and more
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
}


def one_step(world: World, left: dict[str, str]) -> tuple[dict[str, float], list[str]]:
    """The numbers of a step of an engine that was built in such an environment, and what is left of it."""
    os.environ |= left
    run = synthetic.config(strategy="ds_configs/zero2.json", global_batch=4, micro_batch=1)
    engine = build_engine(run, world)
    values = engine.train_step(synthetic.micro_batches(run, 0, world.rank, world.size))
    return values, [name for name, value in left.items() if os.environ.get(name) != value]


def test_what_is_ignored_changes_nothing() -> None:
    """--cpu alone had ended in an AttributeError: accelerate then leaves DeepSpeed out."""
    plain, _ = run_ranks(one_step, 2, {})[0]
    told, lost = run_ranks(one_step, 2, LEFT)[0]
    assert told == plain and not lost
