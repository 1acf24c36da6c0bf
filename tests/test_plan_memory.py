"""The planned bytes are those torch allocates: two ranks, on the CPU, within 10 %.

`python tests/test_plan_memory.py` measures every case and prints the table of docs/evidence/memory.md.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from molmo_ds import settings
from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.cli import plan as plan_command
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.engine import optim
from molmo_ds.engine.plan import plan_memory
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import memory, synthetic

ROOT = Path(__file__).parents[1]
FOLDER = Path(tempfile.mkdtemp())

MODEL = MolmoConfig(
    text=TextConfig(
        model_type="qwen2",
        vocab_size=4096,
        embedding_size=4096,
        additional_vocab_size=128,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        rope_theta=1e4,
    ),
    vision=VisionConfig(
        model_type="clip",
        image_size=56,
        patch_size=7,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        feature_layers=(-1, -2),
    ),
    connector=ConnectorConfig(),
    images=ImageConfig(crop_mode="resize", max_crops=1),
)
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "intermediate_size": 256,
}
STRATEGIES = [
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero3_offload",
    "zero3_hpz",
    "zero3_sp",
    "zero3_tp",
    "zero3_tp_offload",
    "pipe_zero1",
]
STRATEGIES += ["zero2_ep", "zero3_ep", "zero3_ep_offload"]  # with a model that has experts
CASES: dict[str, dict] = {name: {} for name in STRATEGIES} | {
    "pipe_dualpipev": {"global_batch": 4},
    "zero3 full": {"activation_checkpointing": "full"},
    "zero1 4 micro-steps": {"global_batch": 8},
    "zero3 4 micro-steps": {"global_batch": 8},
}
BF16 = ("zero0", "zero1", "zero2", "zero3", "pipe_zero1")
CASES |= {f"{name} autocast": {"precision": "bf16"} for name in BF16}
CASES["zero0 muon"] = {"optimizer": "muon"}
CASES |= {f"{name} bf16": {"precision": "bf16"} for name in BF16}
TESTED = [
    "zero1",
    "zero1 autocast",
    "zero0 muon",
    "zero3",
    "zero3 full",
    "zero3_tp",
    "zero3_ep",
    "pipe_zero1",
]
TOKENS = 512
CROPS = 8
PATCHES = 64


def with_bf16_weights(path: str) -> str:
    """The strategy without autocast, so that the weights themselves are bf16."""
    values = json.loads((ROOT / path).read_text())
    del values["torch_autocast"]
    file = FOLDER / Path(path).name
    file.write_text(json.dumps({**values, "bf16": {"enabled": "auto"}}))
    return str(file)


def run(case: str) -> RunConfig:
    """The run of a case: the first word names the strategy."""
    path = f"ds_configs/{case.split()[0]}.json"
    if case.endswith(" bf16"):
        path = with_bf16_weights(path)
    changes = dict(CASES[case])
    data = DataConfig(sequence_length=TOKENS, crops_per_sequence=CROPS)
    text = replace(MODEL.text, **EXPERTS) if "_ep" in path else MODEL.text
    changes.setdefault("global_batch", read_strategy(path).data_parallel_size(2))
    name = changes.pop("optimizer", "adamw")
    made = synthetic.adamw(model=replace(MODEL, text=text), strategy=path, data=data, **changes)
    return replace(made, optim=replace(made.optim, name=name))


def full_batch(config: RunConfig) -> Batch:
    """One document that fills the sequence, with as many crops as the plan reckons with."""
    ids = torch.arange(TOKENS)[None]
    one = torch.ones(1, TOKENS, dtype=torch.int32)
    return Batch(
        input_ids=ids,
        labels=ids,
        loss_weights=torch.ones(1, TOKENS),
        position_ids=ids,
        document_ids=one,
        branch_ids=one * 0,
        images=torch.zeros(CROPS, 56, 56, 3, dtype=torch.uint8),
        image_masks=torch.ones(CROPS, PATCHES),
        windows=windows_of(CROPS, 8, 2),
        image_positions=torch.arange(CROPS * PATCHES // 4),
        learnt_rows=learnt_rows_of(torch.ones(1, TOKENS)),
    )


@pytest.mark.parametrize("case", TESTED)
def test_planned_peak_is_the_measured_one(case: str) -> None:
    for planned, measured in memory.compared(run(case), full_batch):
        assert planned == pytest.approx(measured, rel=0.1)


def test_every_strategy_has_a_plan(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    hosts = tmp_path / "hostfile"
    hosts.write_text("one slots=8\ntwo slots=8  # the second\n")
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        preset = "molmoe_1b" if "_ep" in path.stem else "molmo_7b_d"
        # four micro-batches of two stages
        words = "activation_checkpointing=full", "global_batch=32"
        plan_command.main([preset, str(path), str(hosts), *words])
        said = capsys.readouterr().out.splitlines()
        numbers = [float(word) for word in said[-2].split()]  # the last line is of the host
        assert "16 GPUs" in said[0] and numbers[1] >= 0 and 1 < numbers[8] < 400, path
    with pytest.raises(ValueError, match="no hostfile nowhere"):
        plan_command.main(["tiny", str(path), "nowhere"])


def test_shards_of_a_released_model() -> None:
    """Molmo-7B-D in ZeRO-3 over 16 GPUs: 4 + 4 + 12 bytes per trained parameter and 4 per frozen one, by hand."""
    config = RunConfig(model=settings.load(None, ["preset=molmo_7b_d"]).model, global_batch=16)
    made = plan_memory.plan(config, read_strategy(config.strategy), 16)[0]
    with torch.device("meta"):
        network = Molmo(config.model)
    frozen = optim.frozen_names(network, config.optim)
    trained = sum(p.numel() for name, p in network.named_parameters() if name not in frozen)
    still = sum(p.numel() for name, p in network.named_parameters() if name in frozen)
    assert trained > 7e9 and still > 5e8
    steady = made.weights + made.gradients + made.optimizer
    assert steady == pytest.approx((20 * trained + 4 * still) / 16, rel=1e-3)


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        for planned, measured in memory.compared(run(case), full_batch):
            print(
                f"| {case} | {planned / 1e6:.0f} | {measured / 1e6:.0f} | {100 * (planned / measured - 1):+.1f} % |"
            )
