"""Blocks of a strategy file that have another shape: one sentence with file, key and the right form."""

import json
import re
from pathlib import Path

import pytest

from molmo_ds.config import RunConfig
from molmo_ds.engine.ds_config import uses_bf16
from molmo_ds.engine.strategy import file as strategy_file
from molmo_ds.engine.strategy import overruled, read_strategy

ROOT = Path(__file__).parents[2]
WRONG = ("cpu", 3, -1, 2.5, True, None, [], [1], {"nonsense": 1})


def write(folder: Path, content: object) -> str:
    path = folder / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


def blocks(hint: object, prefix: str = "") -> list[str]:
    """Dotted names of every block that has names of its own, and of those that have none."""
    out = []
    for name, inner in hint.__annotations__.items():
        if inner is strategy_file.Block or hasattr(inner, "__annotations__"):
            out.append(prefix + name)
            out += blocks(inner, f"{prefix}{name}.") if hasattr(inner, "__annotations__") else []
    return out


def nested(key: str, value: object) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_blocks_that_the_engines_read_are_known() -> None:
    known = set(blocks(strategy_file.File))
    asked: set[str] = set()
    for path in (ROOT / "molmo_ds/engine").rglob("*.py"):
        asked |= set(
            re.findall(r"(?:ds|zero|block|ours|values)\.get\(\"(\w+)\", \{\}\)", path.read_text())
        )
    assert asked >= {"zero_optimization", "expert_parallel", "tensor_parallel", "offload_optimizer"}
    assert asked <= {key.rsplit(".", 1)[-1] for key in known}


@pytest.mark.parametrize("key", blocks(strategy_file.File))
def test_a_block_of_another_shape(key: str, tmp_path: Path) -> None:
    last = key.rsplit(".", 1)[-1]
    for value in WRONG[:-1]:
        with pytest.raises(ValueError) as caught:
            read_strategy(write(tmp_path, nested(key, value)))
        said = str(caught.value)
        start = f"{tmp_path}/mine.json: {key} is {json.dumps(value)}; it must be a block: "
        assert said.startswith(start) and "\n" not in said
        form = said.removeprefix(start).removesuffix(".")
        shown = json.loads("{" + form + "}")
        assert list(shown) == [last], "the form that is shown is JSON of the same key"
        read_strategy(write(tmp_path, nested(key, shown[last])))


VALUES = {
    "zero_optimization.stage": ("3", 4, True, 2.0, None),
    "zero_optimization.offload_param.device": ("disk", 3, None),
    "zero_optimization.zero_hpz_partition_size": ("8", 0, 1.5),
    "zero_optimization.reduce_bucket_size": ("5e8", -1),
    "zero_optimization.overlap_comm": ("yes", 1),
    "molmo_ds.stages": ("two", 2.0, 0, True),
    "molmo_ds.engine": (3, ["pipeline"]),
    "molmo_ds.sequence_parallel_size": ("2", 0),
    "expert_parallel.autoep_size": ("2", 0, True),
    "expert_parallel.enabled": ("true", 1),
    "tensor_parallel.autotp_size": ("2", 0, -2),
    "bf16.enabled": ("yes", 1),
    "optimizer.type": (3, None),
    "train_batch_size": ("eight", -8, 8.5, True),
    "gradient_clipping": ("yes", -1, True),
    "gradient_predivide_factor": (0, -1, "auto"),
}


@pytest.mark.parametrize("key", VALUES)
def test_values_of_another_kind(key: str, tmp_path: Path) -> None:
    for value in VALUES[key]:
        with pytest.raises(ValueError) as caught:
            read_strategy(write(tmp_path, nested(key, value)))
        said = str(caught.value)
        assert (
            said.startswith(f"{tmp_path}/mine.json: {key} is {json.dumps(value)}; it must be ")
            and "\n" not in said
        )


def test_all_mistakes_of_a_file_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read_strategy(
            write(
                tmp_path,
                {"bf16": True, "zero_optimization": {"stage": "3", "offload_param": "cpu"}},
            )
        )
    keys = re.findall(r"mine.json: (\S+) is", str(caught.value))
    assert sorted(keys) == ["bf16", "zero_optimization.offload_param", "zero_optimization.stage"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b'{"bf16": {},}', "line 1 column 13"),
        (b'{"bf16": {}, "bf16": {}}', "'bf16' stands there twice"),
        (b'{"zero_optimization": {"stage": 1, "stage": 3}}', "'stage' stands there twice"),
        (b'{"gradient_clipping": NaN}', "NaN is no number"),
        (b"[]", "holds no JSON object"),
        (b'"zero3"', "holds no JSON object"),
        (b"\xff\xfe{}", "no text in UTF-8"),
    ],
)
def test_what_is_no_object_of_json(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read_strategy(write(tmp_path, content))
    assert (
        words in str(caught.value)
        and "mine.json" in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("block", strategy_file.NAMES)
def test_a_name_inside_of_a_block_that_deepspeed_would_ignore(block: str, tmp_path: Path) -> None:
    for name in strategy_file.NAMES[block].split():
        wrong = name[0].upper() + name[1:]
        with pytest.raises(ValueError) as caught:
            read_strategy(write(tmp_path, {block: {wrong: "auto"}}))
        end = f"mine.json: {block} has the unknown key '{wrong}'; the nearest one is '{name}'."
        assert str(caught.value).endswith(end)


def test_the_names_are_those_that_deepspeed_reads() -> None:
    from deepspeed.module_inject.auto_ep_config import AutoEPConfig
    from deepspeed.monitor import config as monitor
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
    from deepspeed.runtime.config import get_pipeline_config
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    profiled = [
        getattr(profiling, name)
        for name in dir(profiling)
        if name.startswith("FLOPS_PROFILER_") and not name.endswith(("_DEFAULT", "_FORMAT"))
    ]
    asked = {
        "aio": AIO_DEFAULT_DICT,
        "activation_checkpointing": ACT_CHKPT_DEFAULT,
        "flops_profiler": profiled,
        "pipeline": [*get_pipeline_config({}), "use_reentrant"],
        "fp16": DeepSpeedFP16Config.model_fields,
        "tensorboard": monitor.TensorBoardConfig.model_fields,
        "wandb": monitor.WandbConfig.model_fields,
        "csv_monitor": monitor.CSVConfig.model_fields,
        "expert_parallel": [name for name in vars(AutoEPConfig()) if not name.startswith("_")],
    }
    for block, names in asked.items():
        assert set(names) == set(strategy_file.NAMES[block].split()), block


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ({"activation_checkpointing": {"partition_activations": True}}, {}, "=none)"),
        ({"checkpoint": {"load_universal": True}}, {}, "checkpoint (the run: its checkpoints"),
        (
            {"compile": {"deepcompile": True}},
            {"compile": False},
            "compile (the run: compile=False)",
        ),
        ({"zenflow": {"topk_ratio": 0.1}}, {}, "zenflow (the run: DeepSpeed reads it inside of"),
        ({"tensorboard": {"enabled": True}}, {}, "tensorboard.enabled=true (the run: wandb and"),
        ({"wandb": {"enabled": True}}, {}, "wandb.enabled=true (the run: the setting wandb)"),
        ({"csv_monitor": {"enabled": True}}, {}, "csv_monitor.enabled=true (the run: metrics"),
        ({"data_efficiency": {"enabled": True}}, {}, "data_efficiency.enabled=true (the run: its"),
        ({"autotuning": {"enabled": True}}, {}, "autotuning.enabled=true (the run: molmo-ds plan)"),
        ({"aio": {"queue_depth": 8}}, {}, "aio (the run: nothing is on NVMe)"),
        ({"optimizer": {"type": "Lamb"}}, {}, "optimizer.type=Lamb (the run: optim.name=adamw)"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "scheduler.type=WarmupLR (the run: a warm-up"),
        ({"gradient_clipping": 0}, {}, "gradient_clipping=0 (the run: optim.max_grad_norm=1)"),
        ({"bf16": {"enabled": True}}, {}, "bf16.enabled=true (the run: precision=auto, fp32 here)"),
        ({"torch_autocast": {"enabled": True}}, {}, "torch_autocast.enabled=true (the run: prec"),
        ({"bf16": {"enabled": False}}, {"precision": "bf16"}, "bf16.enabled=false (the run: pre"),
        ({"steps_per_print": 2000}, {}, "steps_per_print=2000 (the run: log_interval=10)"),
    ],
)
def test_what_does_not_count_is_said(
    content: dict, settings: dict, said: str, tmp_path: Path
) -> None:
    config = RunConfig(out="x", **settings)
    half = uses_bf16(config, on_gpu=False)
    [sentence] = overruled.told(read_strategy(write(tmp_path, content)), config, half)
    assert said in sentence and sentence.startswith(f"{tmp_path}/mine.json says what does not")


def test_what_leaves_it_to_the_run_is_not_said(tmp_path: Path) -> None:
    config = RunConfig(out="x")
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        assert overruled.told(read_strategy(str(path)), config, half=True) == []
    usual = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "wandb": {"enabled": False}}
    usual |= {"bf16": {"enabled": "auto"}, "steps_per_print": "auto", "gradient_clipping": "auto"}
    assert overruled.told(read_strategy(write(tmp_path, usual)), config, half=False) == []
    nvme = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}
    nvme["aio"] = {"queue_depth": 8}
    assert overruled.told(read_strategy(write(tmp_path, nvme)), config, half=False) == []


def test_what_is_usual_is_taken(tmp_path: Path) -> None:
    usual = {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 5e8,
            "stage3_max_live_parameters": 1e9,
        }
    }
    usual |= {
        "fp16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "bf16": {},
    }
    assert read_strategy(write(tmp_path, usual)).stage == 3
    assert read_strategy(write(tmp_path, b"\xef\xbb\xbf{}")).stage == 0
