"""Every pair of strategies that cannot run is refused in one sentence that names the nearest one that can."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from molmo_ds.architecture import TextConfig
from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine.pipeline import balance
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.engine.strategy.refusals import TABLE, Asked, first, refuse
from molmo_ds.model.molmo import layer_list
from molmo_ds.testing import synthetic

FILES = Path(__file__).parents[2] / "ds_configs"
DENSE = synthetic.MODEL.text
EXPERTS = replace(
    DENSE, model_type="olmoe", num_experts=4, num_experts_per_tok=2, num_key_value_heads=4
)
SPREAD = {"expert_parallel": {"enabled": True, "autoep_size": 2}}
SPLIT = {"tensor_parallel": {"autotp_size": 2}}
SHARE = {"molmo_ds": {"engine": "sequence", "sequence_parallel_size": 2}}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
# file, what is merged into it, decoder, ranks, words of the sentence
REFUSED: dict[str, tuple[str, dict, TextConfig, int, str]] = {
    "strategy to answer with": ("infer/tp8", {}, DENSE, 8, "train with ds_configs/zero3_tp.json"),
    "stages to answer with": (
        "infer/tp8_pp2",
        {},
        DENSE,
        16,
        "train with ds_configs/pipe_zero1.json",
    ),
    "experts to answer with": ("infer/ep8", {}, EXPERTS, 8, "train with ds_configs/zero3_ep.json"),
    "limits without inference": ("zero3", {"molmo_ds": {"slots": 8}}, DENSE, 4, "leave them out"),
    "execution without inference": (
        "zero3",
        {"molmo_ds": {"weights": "int8"}},
        DENSE,
        4,
        "leave them out",
    ),
    "gradients that are summed": (
        "zero1",
        {"gradient_allreduce_op": "sum"},
        DENSE,
        4,
        "for the mean of the ranks' gradients",
    ),
    "unknown setting": ("pipe_zero1", {"molmo_ds": {"stage": 2}}, DENSE, 4, "has no setting"),
    "stages without pipeline": (
        "zero3",
        {"molmo_ds": {"stages": 2}},
        DENSE,
        4,
        '"engine": "pipeline"',
    ),
    "sequence without engine": (
        "zero3",
        {"molmo_ds": {"sequence_parallel_size": 2}},
        DENSE,
        4,
        '"engine": "sequence"',
    ),
    "DeepSpeed's own sequence key": (
        "zero3",
        {"sequence_parallel_size": 2},
        DENSE,
        4,
        "inside the molmo_ds block",
    ),
    "pipeline under ZeRO-0": (
        "pipe_zero1",
        {"zero_optimization": {"stage": 0}},
        DENSE,
        4,
        "pipe_zero1.json",
    ),
    "pipeline under ZeRO-2": (
        "pipe_zero1",
        {"zero_optimization": {"stage": 2}},
        DENSE,
        4,
        "pipe_zero1.json",
    ),
    "pipeline under ZeRO-3": (
        "pipe_zero1",
        {"zero_optimization": {"stage": 3}},
        DENSE,
        4,
        "pipe_zero1.json",
    ),
    "one stage": ("pipe_zero1", {"molmo_ds": {"stages": 1}}, DENSE, 4, "2 or more stages"),
    "pipeline and tensors": ("pipe_zero1", SPLIT, DENSE, 4, "zero3_tp.json"),
    "pipeline and offload": (
        "pipe_zero1",
        {"zero_optimization": OFFLOAD},
        DENSE,
        4,
        "zero3_offload.json",
    ),
    "pipeline and tied": (
        "pipe_zero1",
        {},
        replace(DENSE, tie_word_embeddings=True),
        4,
        "tie_word_embeddings=false",
    ),
    "schedule without pipeline": (
        "zero3",
        {"molmo_ds": {"schedule": "dualpipev"}},
        DENSE,
        4,
        '"engine": "pipeline"',
    ),
    "unknown schedule": (
        "pipe_zero1",
        {"molmo_ds": {"schedule": "zigzag"}},
        DENSE,
        4,
        "write dualpipev",
    ),
    "DualPipeV of few micro-batches": (
        "pipe_dualpipev",
        {"molmo_ds": {"stages": 4}},
        DENSE,
        16,
        "needs 8 micro",
    ),
    "DualPipeV and tied": (
        "pipe_dualpipev",
        {},
        replace(DENSE, tie_word_embeddings=True),
        4,
        "=false",
    ),
    "pipeline over odd ranks": ("pipe_zero1", {}, DENSE, 3, "multiple of 2"),
    "sequence over too many heads": (
        "zero3_sp",
        {"molmo_ds": {"sequence_parallel_size": 8}},
        DENSE,
        8,
        "divide 4 attention heads",
    ),
    "sequence and tensors": ("zero3_tp", SHARE, DENSE, 4, "zero3_tp.json"),
    "experts of a dense model": ("zero3_ep", {}, DENSE, 4, "zero3.json"),
    "experts that do not divide": (
        "zero3_ep",
        {"expert_parallel": {"autoep_size": 3}},
        EXPERTS,
        3,
        "divide 4 experts",
    ),
    "experts over too few ranks": (
        "zero3_ep",
        {"expert_parallel": {"autoep_size": 4}},
        EXPERTS,
        2,
        "the 2 ranks",
    ),
    "experts of stages": (
        "pipe_zero1_ep",
        {"expert_parallel": {"autoep_size": 4}},
        EXPERTS,
        4,
        "the 2 ranks",
    ),
    "experts over one rank": (
        "zero3_ep",
        {"expert_parallel": {"autoep_size": 1}},
        EXPERTS,
        4,
        "2 or more",
    ),
    "experts under ZeRO-0": (
        "zero2_ep",
        {"zero_optimization": {"stage": 0}},
        EXPERTS,
        4,
        "zero2_ep.json",
    ),
    "experts and hpZ": ("zero3_hpz", SPREAD, EXPERTS, 4, "zero3_ep.json"),
    "experts and quantised": (
        "zero3_ep",
        {"zero_optimization": {"zero_quantized_gradients": True}},
        EXPERTS,
        4,
        "zero3_ep.json",
    ),
    "experts and NVMe": ("zero3_nvme", SPREAD, EXPERTS, 4, "zero3_ep_offload.json"),
    "tensors that do not divide": (
        "zero3_tp",
        {"tensor_parallel": {"autotp_size": 4}},
        DENSE,
        4,
        "zero3_sp.json",
    ),
    "tensors under ZeRO-0": (
        "zero3_tp",
        {"zero_optimization": {"stage": 0}},
        DENSE,
        4,
        "zero3_tp.json",
    ),
    "tensors and hpZ": ("zero3_hpz", SPLIT, DENSE, 4, "zero3_hpz.json"),
    "tensors and NVMe": ("zero3_nvme", SPLIT, DENSE, 4, "zero3_tp_offload.json"),
    "tensors with a preset": (
        "zero3_tp",
        {"tensor_parallel": {"preset_model": "qwen2"}},
        DENSE,
        4,
        "autotp_size only",
    ),
    "hpZ over odd ranks": ("zero3_hpz", {}, DENSE, 3, "does not divide 3 ranks"),
    "hpZ under ZeRO-2": ("zero3_hpz", {"zero_optimization": {"stage": 2}}, DENSE, 4, "stage 3"),
    "NVMe under ZeRO-2": (
        "zero3_nvme",
        {"zero_optimization": {"stage": 2}},
        DENSE,
        4,
        "zero3_nvme.json",
    ),
    "NVMe and hpZ": (
        "zero3_nvme",
        {"zero_optimization": {"zero_hpz_partition_size": 2}},
        DENSE,
        4,
        "zero3_nvme.json",
    ),
    "NVMe swapped ahead": (
        "zero3_nvme",
        {"zero_optimization": {"offload_optimizer": {"pipeline_read": True}}},
        DENSE,
        4,
        "leave both out",
    ),
    "offload under ZeRO-0": ("zero0", {"zero_optimization": OFFLOAD}, DENSE, 4, "stage 1"),
    "offloaded weights under ZeRO-2": (
        "zero2",
        {"zero_optimization": {"offload_param": {"device": "cpu"}}},
        DENSE,
        4,
        "stage 3",
    ),
    "unknown engine": (
        "zero3",
        {"molmo_ds": {"engine": "warp"}},
        DENSE,
        4,
        "'warp'; molmo_ds.engine is zero, sequence",
    ),
    "fp16": ("zero3", {"fp16": {"enabled": True}}, DENSE, 4, "use bf16"),
    "autocast to another type": (
        "zero3",
        {"torch_autocast": {"enabled": True, "dtype": "float16"}},
        DENSE,
        4,
        "torch_autocast.dtype=float16, and",
    ),
    "another clipping": ("zero3", {"gradient_clipping": 5.0}, DENSE, 4, "optim.max_grad_norm"),
    "another optimizer": (
        "zero3",
        {"optimizer": {"params": {"lr": 1e-3}}},
        DENSE,
        4,
        "optimizer.params.lr, which",
    ),
    "another scheduler": (
        "zero3",
        {"scheduler": {"params": {"a": 1}}},
        DENSE,
        4,
        "scheduler.params.a, which",
    ),
    "another global batch": (
        "zero3",
        {"train_batch_size": 9},
        DENSE,
        4,
        "=9, but global_batch and micro_batch make it 24",
    ),
    "another micro-batch": ("zero3", {"train_micro_batch_size_per_gpu": 2}, DENSE, 4, "=2, but"),
    "another accumulation": ("zero3", {"gradient_accumulation_steps": 5}, DENSE, 4, "make it 6"),
}


def merge(base: dict, changes: dict) -> dict:
    """base with the leaves of changes."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        out[key] = merge(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def run(text: TextConfig) -> RunConfig:
    return synthetic.config(model=replace(synthetic.MODEL, text=text), global_batch=24)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    file, changes, text, ranks, words = REFUSED[name]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(merge(json.loads((FILES / f"{file}.json").read_text()), changes)))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        refuse(read_strategy(str(path)), run(text), ranks)
    sentence = str(error.value).removeprefix(str(path))
    assert str(error.value).startswith(str(path)) and sentence.endswith(".") and len(sentence) < 300
    for named in re.findall(r"\w+\.json", sentence):
        assert (FILES / named).is_file(), f"{named} is named and does not exist"


def test_every_row_has_a_case(tmp_path: Path) -> None:
    """And names of rows and cases are unique; three have theirs in test_ds_config, test_hemolmo_ranks and test_muon."""
    met = {"global batch that does not divide", "selection without ZeRO", "matrices in parts"}
    for file, changes, text, ranks, _ in REFUSED.values():
        path = tmp_path / "mine.json"
        path.write_text(
            json.dumps(merge(json.loads((FILES / f"{file}.json").read_text()), changes))
        )
        row = first(Asked(read_strategy(str(path)), run(text), ranks))
        assert row is not None
        met.add(row.name)
    assert sorted(row.name for row in TABLE) == sorted(met)


@pytest.mark.parametrize("path", sorted(FILES.glob("*.json")), ids=lambda path: path.stem)
def test_own_files_are_not_refused(path: Path) -> None:
    refuse(read_strategy(str(path)), run(EXPERTS), 4)


def test_stages_cost_alike() -> None:
    config = run(DENSE)
    rows = layer_list(config.model, 0.0)
    bounds = balance(rows, config, 3)
    assert bounds[0] == 0 and bounds[-1] == len(rows) and len(bounds) == 4
    # then nearly only the decoder costs
    wide = replace(config, data=replace(config.data, crops_per_sequence=1))
    assert (
        balance(rows, wide, 2)[1]
        > balance(rows, replace(config, data=replace(config.data, sequence_length=1)), 2)[1]
    )


def test_stages_that_learn_nothing() -> None:
    config = run(DENSE)
    rows = layer_list(config.model, 0.0)
    still = replace(config.optim.vision, freeze=True)
    frozen = replace(config, optim=replace(config.optim, vision=still))
    names = [name for name, _, _ in rows]
    assert balance(rows, frozen, 2)[1] > names.index("connector"), (
        "a frozen tower is no stage of its own"
    )
    text = replace(config, optim=replace(config.optim, text=still))
    assert balance(rows, text, 3)[2] <= names.index("embed"), "a frozen decoder neither"
    both = replace(text, optim=replace(text.optim, vision=still))
    assert balance(rows, both, 2) == [0, names.index("embed"), len(rows)]
    adapters = replace(
        both,
        optim=replace(both.optim, connector=still, text=config.optim.text),
        lora=LoraConfig(components=("text",)),
    )
    assert balance(rows, adapters, 2) == [0, names.index("layers.1"), len(rows)], (
        "the head has no adapter"
    )
    with pytest.raises(ValueError, match="2 layers that learn cannot fill 3 pipeline stages"):
        balance(rows, adapters, 3)
    with pytest.raises(ValueError, match="cannot fill 30 pipeline stages"):
        balance(rows, config, 30)
