"""Strategy files: what is filled in, and one sentence for each that cannot run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from molmo_ds import presets
from molmo_ds.config import RunConfig
from molmo_ds.engine import ds_config
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.engine.strategy.refusals import refuse
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
ZERO3 = json.loads((ROOT / "ds_configs/zero3.json").read_text())


def run(**changes) -> RunConfig:
    return replace(RunConfig(global_batch=8, micro_batch=1, out="x"), **changes)


AUTOCAST = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def write(folder: Path, values: object) -> str:
    path = folder / "mine.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_filled_and_taken_by_deepspeed(path: Path) -> None:
    strategy = read_strategy(str(path))
    ds = ds_config.resolve(strategy, run(), 8, on_gpu=True)
    assert '"auto"' not in json.dumps(ds) and "molmo_ds" not in ds
    assert ds["gradient_clipping"] == 0.0, (
        "DeepSpeed must not clip: each component is clipped to its own norm"
    )
    assert ds["torch_autocast"] == AUTOCAST and "bf16" not in ds
    assert ds["train_micro_batch_size_per_gpu"] == 1
    assert not ds_config.resolve(strategy, run(), 8, on_gpu=False)["torch_autocast"]["enabled"]


def test_sizes_follow_the_run() -> None:
    strategy = read_strategy("ds_configs/zero3.json")
    config = run(global_batch=24, micro_batch=3, model=synthetic.MODEL)
    ds = ds_config.resolve(strategy, config, 2, on_gpu=False)
    assert (ds["train_batch_size"], ds["gradient_accumulation_steps"]) == (24, 4)
    ds_config.check_with_deepspeed(strategy, ds_config.resolve(strategy, config, 1, on_gpu=False))
    wide = replace(config.model, text=replace(config.model.text, hidden_size=4096))
    with torch.device("meta"):
        elements = sum(parameter.numel() for parameter in Molmo(wide).parameters())
    zero = ds_config.resolve(strategy, replace(config, model=wide), 2, True)["zero_optimization"]
    assert zero["reduce_bucket_size"] == elements // 16 > 2**19
    assert zero["stage3_prefetch_bucket_size"] == elements // 16
    assert zero["stage3_param_persistence_threshold"] == 40960


@pytest.mark.parametrize(
    ("preset", "reduced", "prefetched"),
    [
        ("qwen2_1b5", 131728416, 131728416),
        ("molmo_7b_d", 500e6, 200e6),
        ("molmo_72b", 500e6, 200e6),
    ],
)
def test_buckets_hold_several_matrices(preset: str, reduced: float, prefetched: float) -> None:
    """Of the 7B, a matrix of an MLP has 67.9e6 elements."""
    strategy = read_strategy("ds_configs/zero3.json")
    ds = ds_config.resolve(strategy, run(model=presets.get(preset)), 8, on_gpu=True)
    zero = ds["zero_optimization"]
    assert zero["reduce_bucket_size"] == pytest.approx(reduced, rel=0.05)
    assert zero["stage3_prefetch_bucket_size"] == pytest.approx(prefetched, rel=0.05)


def test_deepspeed_waits_for_nothing_that_nobody_reads() -> None:
    ds = ds_config.resolve(read_strategy("ds_configs/zero1.json"), run(), 8, on_gpu=True)
    assert ds["timers"] == {"throughput": {"enabled": False}}


def test_a_deepspeed_users_own_file(tmp_path: Path) -> None:
    own = {
        **ZERO3,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "fp16": {"enabled": "auto"},
        "wall_clock_breakdown": False,
    }
    strategy = read_strategy(write(tmp_path, own))
    refuse(strategy, run(), 2)
    ds = ds_config.resolve(strategy, run(), 2, on_gpu=False)
    assert "optimizer" not in ds and "scheduler" not in ds and ds["wall_clock_breakdown"] is False


def test_autocast_instead_of_bf16_weights(tmp_path: Path) -> None:
    """Gradients are reduced in fp32 unless the file says otherwise; DeepSpeed's own default is bf16."""
    strategy = read_strategy(write(tmp_path, {**ZERO3, "torch_autocast": {"enabled": "auto"}}))
    assert strategy.casts
    ds = ds_config.resolve(strategy, run(), 2, on_gpu=True)
    assert ds["torch_autocast"] == AUTOCAST and "bf16" not in ds


@pytest.mark.parametrize("block", [None, {"enabled": False}], ids=str)
def test_bf16_weights_instead_of_autocast(tmp_path: Path, block: dict | None) -> None:
    values = {**ZERO3, "torch_autocast": block, "bf16": {"enabled": "auto"}}
    if block is None:
        del values["torch_autocast"]
    strategy = read_strategy(write(tmp_path, values))
    assert not strategy.casts
    ds = ds_config.resolve(strategy, run(), 2, on_gpu=True)
    assert ds["bf16"]["enabled"] and not ds.get("torch_autocast", {}).get("enabled")


def zero(**changes) -> dict:
    return {**ZERO3, "zero_optimization": {**ZERO3["zero_optimization"], **changes}}


REFUSED = {
    "unknown key": (
        {**ZERO3, "zero_optimisation": {}},
        "unknown key 'zero_optimisation'; the nearest one is 'zero_opt",
    ),
    "not JSON": ('{"a": 1,}', "is not JSON"),
    "no object": ("[1]", "no JSON object"),
    "stage": (zero(stage=4), "must be a whole number from 0 to 3"),
    "fp16": ({**ZERO3, "fp16": {"enabled": True}}, "use bf16"),
    "offload": (zero(stage=2, offload_param={"device": "cpu"}), "offload_param needs ZeRO stage 3"),
    "offload of nothing": (
        zero(stage=0, offload_optimizer={"device": "cpu"}),
        "offload_optimizer needs ZeRO stage 1",
    ),
    "hpz": (zero(stage=1, zero_hpz_partition_size=2), "zero_hpz_partition_size needs ZeRO stage 3"),
    "clipping": ({**ZERO3, "gradient_clipping": 5.0}, "optim.max_grad_norm"),
    "optimizer": (
        {**ZERO3, "optimizer": {"type": "Adam", "params": {"lr": 1e-3}}},
        "optimizer.params.lr",
    ),
    "batch": ({**ZERO3, "train_batch_size": 9}, "train_batch_size=9"),
    "engine": ({**ZERO3, "molmo_ds": {"engine": "warp"}}, "there is no engine 'warp'"),
    "stages": ({**ZERO3, "molmo_ds": {"engine": "pipeline", "stages": 2}}, "ZeRO stage 1"),
    "ranks": (
        {**zero(stage=1), "molmo_ds": {"engine": "pipeline", "stages": 3}},
        "multiple of 3 ranks",
    ),
    "auto": (
        {**ZERO3, "communication_data_type": "auto"},
        'leaves communication_data_type on "auto"',
    ),
    "DeepSpeed": (zero(leaf_module="sometimes"), "DeepSpeed refuses"),
    "DeepSpeed's own": (zero(no_such_setting=1), "DeepSpeed refuses"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_for_what_cannot_run(tmp_path: Path, name: str) -> None:
    values, words = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        strategy = read_strategy(write(tmp_path, values))
        refuse(strategy, run(), 2)
        ds_config.check_with_deepspeed(
            strategy, ds_config.resolve(strategy, run(global_batch=4, micro_batch=4), 1, True)
        )
    said = str(caught.value)
    assert words in said and "\n" not in said and "mine.json" in said


@pytest.mark.parametrize(
    "kind", ["AssertionError", "ValueError", "NotImplementedError", "Exception"]
)
def test_what_deepspeed_refuses_while_it_builds_names_the_file(tmp_path: Path, kind: str) -> None:
    """A fault elsewhere, and DeepSpeed's faults that are no words on a setting, stay what they are."""
    strategy = read_strategy(write(tmp_path, {"zero_optimization": {"stage": 1}}))
    raised = f"raise {kind}('x is odd.')"
    refused = r"^DeepSpeed refuses .*mine\.json: x is odd\.$"
    with pytest.raises(ValueError, match=refused), ds_config.in_sentences(strategy):
        exec(compile(raised, "/y/deepspeed/engine.py", "exec"))
    with pytest.raises(Exception, match=r"^x is odd\.$"), ds_config.in_sentences(strategy):
        exec(compile(raised, "/y/ours/engine.py", "exec"))
    with pytest.raises(RuntimeError, match=r"^no memory$"), ds_config.in_sentences(strategy):
        exec(compile("raise RuntimeError('no memory')", "/y/deepspeed/engine.py", "exec"))


def test_missing_file_and_batch_that_does_not_divide() -> None:
    with pytest.raises(
        ValueError, match="no strategy file ds_configs/zero9.json; files next to it: ds_configs/"
    ):
        read_strategy("ds_configs/zero9.json")
    with pytest.raises(ValueError, match="choose a multiple of 6"):
        refuse(read_strategy("ds_configs/zero1.json"), run(micro_batch=2), 3)


def test_accelerates_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    with pytest.raises(ValueError, match="accelerate launch --use_deepspeed"):
        read_strategy("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    strategy = read_strategy("accelerate")
    assert strategy.stage == 2
    refuse(strategy, run(), 2)
    ds = ds_config.resolve(strategy, run(), 2, on_gpu=False)
    assert ds["zero_optimization"]["stage"] == 2 and ds["train_batch_size"] == 8


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ds_configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_its_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --config_file` hands to its processes is what strategy=accelerate reads."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.distributed_type == "DEEPSPEED"
    file = config.deepspeed_config["deepspeed_config_file"]
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(ROOT / file))
    seen = ds_config.resolve(read_strategy("accelerate"), run(), 2, on_gpu=True)
    assert seen == ds_config.resolve(read_strategy(file), run(), 2, on_gpu=True)
