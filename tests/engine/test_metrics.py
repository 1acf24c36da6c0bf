"""What a run logs: operations counted as torch counts them, rates from known times, a log that forgets lost steps."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from molmo_ds.architecture import TextConfig, VisionConfig
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import loss_scale
from molmo_ds.engine.launch import World
from molmo_ds.model.flops import Learning, flops_of_step, flops_per_crop, flops_per_token
from molmo_ds.model.molmo import Molmo
from molmo_ds.monitor import metrics
from molmo_ds.testing import synthetic

ALONE = World(0, 0, 1, torch.device("cpu"))


def full_batch(crops: int, length: int, pooled: int) -> Batch:
    """One sequence without padding, one document, every token learnt."""
    places = torch.arange(length)[None]
    positions = torch.full((crops, pooled), -1)
    positions[:, 0] = torch.arange(crops)
    weights = torch.ones(1, length)
    return Batch(
        input_ids=places % 90,
        labels=places % 90,
        loss_weights=weights,
        position_ids=places,
        document_ids=torch.ones(1, length, dtype=torch.int32),
        branch_ids=torch.zeros(1, length, dtype=torch.int32),
        images=torch.zeros(crops, 28, 28, 3, dtype=torch.uint8),
        image_masks=torch.ones(crops, synthetic.PATCHES),
        windows=windows_of(crops, 4, 2),
        image_positions=positions.flatten(),
        learnt_rows=learnt_rows_of(weights),
    )


def test_operations_are_those_of_a_forward_pass() -> None:
    """Linear layers are counted while they run; attention and the head, which are fused ops, by hand."""
    config = synthetic.MODEL
    crops = 3
    length = 40
    model = Molmo(config)
    model.reset_parameters(0)
    counted = []

    def count(layer: torch.nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        counted.append(2 * layer.weight.numel() * inputs[0].numel() // layer.in_features)

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(full_batch(crops, length, synthetic.POOLED))  # the head is a Linear too
    text = config.text
    vision = config.vision
    # q k and p v, causal
    text_scores = text.num_hidden_layers * 2 * 2 * text.hidden_size * length * length // 2
    patches = synthetic.PATCHES + 1
    # two of three blocks are used
    vision_scores = crops * 2 * 2 * 2 * vision.hidden_size * patches * patches
    # one query, four keys
    pooling_scores = crops * synthetic.POOLED * 2 * 2 * vision.hidden_size * 4
    ours = length * flops_per_token(config, length) + crops * flops_per_crop(config)
    assert ours == 3 * (sum(counted) + text_scores + vision_scores + pooling_scores)


def test_operations_of_a_step_are_those_that_are_needed() -> None:
    """Attention over the pairs that see each other, and logits of learnt tokens alone."""
    config = synthetic.MODEL
    text = config.text
    whole = 40 * flops_per_token(config, 40) + 3 * flops_per_crop(config)
    # 40 * 41 / 2 pairs of which the rule of thumb counts 40 * 40 / 2
    diagonal = 20 * 6 * text.num_hidden_layers * 2 * text.hidden_size
    seen = (3, 3 * synthetic.POOLED, 3 * synthetic.PATCHES)  # crops, windows, their patches
    assert flops_of_step(config, 40, 40, 820, *seen) == whole + diagonal
    # five documents of 8 tokens, of each of which 2 are learnt
    hidden = (820 - 5 * 36) * 6 * text.num_hidden_layers * 2 * text.hidden_size
    unlearnt = 30 * 6 * text.hidden_size * text.embedding_size
    assert flops_of_step(config, 40, 10, 180, *seen) == whole + diagonal - hidden - unlearnt


def test_operations_of_windows_are_those_that_tokens_show() -> None:
    """Six windows of three patches, of crops that hold twelve of four: as where frames are pooled, or crops overlap."""
    config = synthetic.MODEL
    model = Molmo(config)
    model.reset_parameters(0)
    counted = []

    def count(layer: torch.nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        counted.append(2 * layer.weight.numel() * inputs[0].numel() // layer.in_features)

    for layer in model.connector.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(count)
    batch = full_batch(3, 40, synthetic.POOLED)
    batch = batch.replace(
        windows=batch.windows[::2, :3].contiguous(), image_positions=torch.arange(6)
    )
    with torch.no_grad():
        model(batch)
    _, sums = loss_scale.scale([batch], 1, None, torch.device("cpu"), config)
    counts = dict(zip(loss_scale.COUNTS, sums.tolist(), strict=True))
    assert (counts["windows"], counts["pooled_patches"], counts["crops"]) == (6, 18, 3)
    scores = 2 * 2 * 18 * config.vision.hidden_size  # one query for each patch, and its share
    found = flops_of_step(config, 40, 40, 820, 3, 6, 18) - flops_of_step(
        config, 40, 40, 820, 3, 0, 0
    )
    assert found == 3 * (sum(counted) + scores)


def test_a_window_that_no_token_shows_does_not_count() -> None:
    batch = full_batch(
        3, 40, synthetic.POOLED
    )  # of four windows of a crop the first is added to a token
    _, sums = loss_scale.scale([batch], 1, None, torch.device("cpu"), synthetic.MODEL)
    counts = dict(zip(loss_scale.COUNTS, sums.tolist(), strict=True))
    assert (counts["windows"], counts["pooled_patches"]) == (3, 3 * 4)


@pytest.mark.parametrize(
    "learning, vision, connector, text",
    [
        (Learning(), 6, 6, 6),
        (Learning(("connector", "text")), 2, 6, 6),  # a frozen tower has no backward pass
        (Learning(("connector",)), 2, 6, 4),  # which gradients pass on their way back
        (Learning(("text",)), 2, 2, 6),
        (Learning(("connector",), adapted=("text",)), 2, 6, 4),
        (Learning((), adapted=("text",)), 2, 2, 4),
        (Learning((), adapted=("vision",)), 4, 4, 4),
        (Learning(("vision",)), 6, 4, 4),
    ],
)
def test_what_is_frozen_costs_less(
    learning: Learning, vision: int, connector: int, text: int
) -> None:
    found = tuple(learning.times(part) for part in ("vision", "connector", "text"))
    assert found == (vision, connector, text)


def test_what_of_a_run_learns() -> None:
    config = synthetic.config()
    frozen = replace(config.optim.vision, freeze=True)
    assert metrics.learning_of(config) == Learning(("vision", "connector", "text"))
    still = replace(config, optim=replace(config.optim, vision=frozen))
    assert metrics.learning_of(still) == Learning(("connector", "text"))
    adapted = replace(still, lora=LoraConfig(components=("vision", "text")))
    assert metrics.learning_of(adapted) == Learning(("connector",), ("text",))


def test_operations_of_experts() -> None:
    """Two of four experts run for each token, and the router."""
    dense = replace(synthetic.MODEL, text=replace(synthetic.MODEL.text, intermediate_size=96))
    experts = replace(
        synthetic.MODEL, text=replace(synthetic.MODEL.text, num_experts=4, num_experts_per_tok=2)
    )
    router = 6 * 2 * 32 * 4
    assert flops_per_token(experts, 40) == flops_per_token(dense, 40) + router


def test_operations_of_a_released_model() -> None:
    """6 x parameters x tokens, the rule of thumb, for Molmo-7B-D's decoder: 7.07e9 parameters in products."""
    config = replace(synthetic.MODEL, text=TextConfig(), vision=VisionConfig())
    attention = 3584 * (2 * 3584 + 2 * 512)
    parameters = 28 * (attention + 3 * 3584 * 18944) + 3584 * 152064
    assert flops_per_token(config, 0) == 6 * parameters


def step_values(step: int, tokens: float) -> dict[str, float]:
    values = {
        name: 0.5
        for part in ("connector", "vision", "text")
        for name in (f"lr/{part}", f"grad_norm/{part}")
    }
    counts = {
        "tokens": tokens,
        "positions": 2 * tokens,
        "crops": 4.0,
        "documents": 3.0,
        "images": 2.0,
        "learnt_tokens": tokens / 4,
        "visible_pairs": 10 * tokens,
        "windows": 16.0,
        "pooled_patches": 64.0,
    }
    return {
        "loss": 1.0 / step,
        "ce_loss": 1.0 / step,
        "z_loss": 0.0,
        "accuracy": 0.25,
        **values,
        **counts,
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def test_lines_and_events(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "peak_flops", lambda device: 1e9)
    monkeypatch.setattr(metrics, "process_age", lambda: 4.0)
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    config: RunConfig = synthetic.config(out=str(tmp_path), log_interval=2)
    log = metrics.Metrics(config, ALONE, first_step=2)
    for step in (3, 4):
        clock[0] += 2.0
        log.step(step, step_values(step, 100.0), waited=0.5, stepped=1.0, saving=0.2)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4]
    line = lines[-1]
    assert (
        line["loss"] == 0.25 and line["tokens_per_second"] == 50 and line["crops_per_second"] == 2
    )
    assert line["images_per_second"] == 1
    assert (
        line["step_seconds"] == 2
        and line["data_wait_share"] == 0.25
        and line["packing_fill"] == 0.5
    )
    assert (
        line["learnt_share"] == 0.25
        and line["goodput"] == 0.25
        and line["images_per_second"] == 1
        and line["save_share"] == pytest.approx(0.1)
    )
    flops = flops_of_step(
        config.model, tokens=200, learnt=50, pairs=2000, crops=8, windows=32, pooled=128
    )
    assert line["mfu"] == pytest.approx(flops / 4.0 / 1e9)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        f"train/{name}" for name in ("loss", "z_loss", "accuracy", "tokens_per_second", "mfu")
    } <= tags
    assert {
        f"train/{kind}/{part}"
        for kind in ("lr", "grad_norm")
        for part in ("connector", "vision", "text")
    } <= tags
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(4, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(4, 0.25)], (
        "accelerate's tag"
    )
    assert events.Scalars("learning_rate")[0].value == 0.5
    assert events.Scalars("train/grad_norm")[0].value == pytest.approx(0.75**0.5)
    by_samples = EventAccumulator(str(tmp_path / "tensorboard" / "samples"))
    by_samples.Reload()
    assert [e.step for e in by_samples.Scalars("Train/Samples/train_loss")] == [
        4 * config.global_batch
    ]


def test_an_evaluation_has_a_line_and_counts_in_no_rate(tmp_path: Path, clock: list[float]) -> None:
    log = metrics.Metrics(synthetic.config(out=str(tmp_path), log_interval=4), ALONE, first_step=1)
    for step, evaluating in ((2, 0.0), (3, 40.0), (4, 0.0)):
        clock[0] += 2.0 + evaluating
        found = {"eval/val/loss": 0.5} if evaluating else {}
        log.step(
            step, step_values(step, 100.0) | found, waited=0.5, stepped=1.0, evaluating=evaluating
        )
    log.close()
    lines = {
        line["step"]: line
        for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    }
    assert list(lines) == [3, 4] and lines[3]["eval/val/loss"] == 0.5
    assert [line["tokens_per_second"] for line in lines.values()] == [50, 50]
    assert [line["data_wait_share"] for line in lines.values()] == [0.25, 0.25]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/val/loss")] == [(3, 0.5)]


def test_a_resumed_run_forgets_only_what_it_makes_again(tmp_path: Path) -> None:
    config = synthetic.config(out=str(tmp_path), log_interval=1)
    for first in (0, 2):  # three steps, then again from the second checkpoint on
        log = metrics.Metrics(config, ALONE, first)
        for step in range(first + 1, first + 4):
            log.step(step, step_values(step, 10.0), 0.0, 0.0)
        log.close()
    for folder, tag, unit in (
        ("", "train/loss", 1),
        ("samples", "Train/Samples/train_loss", config.global_batch),
    ):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder))
        events.Reload()
        assert [e.step for e in events.Scalars(tag)] == [unit * step for step in (1, 2, 3, 4, 5)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = metrics.Metrics(
        synthetic.config(out=str(tmp_path)), World(1, 1, 2, torch.device("cpu")), 0
    )
    log.step(1, step_values(1, 10.0), 0.0, 0.0)
    log.close()
    assert not list(tmp_path.iterdir())


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers go to the package, of which this stands in for what we call; without it there is a sentence."""
    config = synthetic.config(
        out=str(tmp_path),
        log_interval=1,
        wandb="molmo",
        wandb_group="captioners",
        wandb_tags=("a", "b"),
    )
    absent = {"wandb": None}
    monkeypatch.setattr(metrics.importlib.util, "find_spec", absent.get)
    with pytest.raises(ValueError, match="wandb=molmo needs the package: pip install wandb"):
        metrics.Metrics(config, ALONE, 0)
    absent["wandb"] = "there"
    runs = []
    lines = []
    ended = []
    run = SimpleNamespace(
        log=lambda values, step: lines.append((step, values)), finish=lambda: ended.append(True)
    )
    wandb = SimpleNamespace(init=lambda **settings: (runs.append(settings), run)[1])
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for first in (0, 1):
        log = metrics.Metrics(config, ALONE, first)
        log.step(first + 1, step_values(first + 1, 10.0), 0.0, 0.0)
        log.close()
    assert [(step, values["train/loss"]) for step, values in lines] == [(1, 1.0), (2, 0.5)] and len(
        ended
    ) == 2
    assert (runs[0]["group"], runs[0]["tags"], runs[0]["entity"]) == (
        "captioners",
        ["a", "b"],
        None,
    )
    assert (
        runs[0]["project"] == "molmo"
        and runs[0]["config"]["wandb"] == "molmo"
        and runs[0] == runs[1]
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA B300 SXM6 AC", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_longest_name_that_fits_is_the_device(name: str, peak: float | None) -> None:
    assert metrics.peak_of(name) == peak
