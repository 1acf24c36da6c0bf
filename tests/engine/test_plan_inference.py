"""The counted table of a 72B that answers on 2 x 8 H100: each figure follows from sizes, bandwidths and latencies."""

import itertools
from dataclasses import replace

import pytest
import torch

from molmo_ds import presets
from molmo_ds.batch import Batch
from molmo_ds.cli import plan as plan_command
from molmo_ds.data.order.packing import collate
from molmo_ds.engine.plan.plan_inference import GIB, PICTURE, Answering, answering
from molmo_ds.engine.strategy import Limits
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import cpu_library
from molmo_ds.testing import synthetic
from molmo_ds.testing.text_sample import text_sample

LAYOUTS = {"TP4 x DP4": (4, 1), "TP8 x DP2": (8, 1), "TP8 x PP2": (8, 2), "TP16": (16, 1)}
#            GiB of weights, GiB of room, tokens, slots
MEMORY = {
    "TP4 x DP4": (36.7, 36.3, 476_000, 206),
    "TP8 x DP2": (20.1, 52.9, 1_387_000, 602),
    "TP8 x PP2": (11.6, 61.4, 3_218_000, 1_396),
}
#            ms a token of 1 row; ms a step and tokens/s on 16 GPUs of 64 and of 128 rows
DECODE = {
    "TP4 x DP4": (13.3, 17.4, 14_700, 21.6, 23_700),
    "TP8 x DP2": (7.4, 10.0, 12_900, 12.5, 20_400),
    "TP8 x PP2": (7.5, 5.0, 12_700, 6.3, 20_300),
    "TP16": (7.9, 16.5, 3_900, 25.3, 5_100),
}
#            8,192 tokens: ms of products, ms of sums, tokens/s on 16 GPUs, pictures/s
PREFILL = {
    "TP4 x DP4": (650, 89, 44_300, 36),
    "TP8 x DP2": (325, 104, 38_100, 31),
    "TP8 x PP2": (163, 52, 38_100, 31),
    "TP16": (163, 164, 25_100, 20),
}


@pytest.fixture(scope="module")
def made() -> dict[str, Answering]:
    config = presets.get("molmo_72b")
    return {
        name: answering(config, tensor, stages, 16) for name, (tensor, stages) in LAYOUTS.items()
    }


def test_parameters(made: dict[str, Answering]) -> None:
    """Decoder 70.215 B, head 1.246, embedding 1.246, ViT 0.291, connector 0.310; a token's cache is 320 KiB."""
    (stage,) = made["TP8 x DP2"].stages
    # norms lie on every rank
    assert 8 * stage.dense / 1e9 == pytest.approx(70.215 + 7 * 160 * 8192e-9, abs=1e-3)
    assert 8 * stage.head / 1e9 == pytest.approx(1.246, abs=1e-3)
    assert stage.other / 1e9 == pytest.approx(1.246 + 0.291 + 0.310, abs=2e-3)
    assert 8 * 2 * stage.cache == 2 * 2 * 80 * 8 * 128 == 320 * 1024
    assert [s.layers for s in made["TP8 x PP2"].stages] == [40, 40]


@pytest.mark.parametrize("name", MEMORY)
def test_memory(made: dict[str, Answering], name: str) -> None:
    one = made[name]
    weights, room, tokens, slots = MEMORY[name]
    assert (round(one.weights / GIB, 1), round(one.room / GIB, 1)) == (weights, room)
    assert one.tokens == pytest.approx(tokens, abs=500) and one.slots(2304) == slots


@pytest.mark.parametrize("name", DECODE)
def test_decode(made: dict[str, Answering], name: str) -> None:
    one = made[name]
    single, *more = DECODE[name]
    assert round(one.latency(1) * 1e3, 1) == single
    for rows, step, rate in zip((64, 128), more[::2], more[1::2]):
        assert round(one.step(rows) * 1e3, 1) == step
        assert round(one.rate(rows), -2) == rate


@pytest.mark.parametrize("name", PREFILL)
def test_prefill(made: dict[str, Answering], name: str) -> None:
    one = made[name]
    compute, sums, rate, pictures = PREFILL[name]
    assert [round(1e3 * seconds) for seconds in one.prefill(8192)] == [compute, sums]
    assert round(one.prefill_rate(8192), -2) == rate
    assert round(one.prefill_rate(8192) / PICTURE) == pictures


def test_experts_are_read_as_they_are_chosen() -> None:
    """64 experts, 8 of them a token: one row reads an eighth of their weights, many rows all."""
    one = answering(presets.get("molmoe_1b"), 1, 1, 1)
    (stage,) = one.stages
    assert stage.experts == 16 * 64 * 3 * 2048 * 1024
    reads = [
        one.tick(rows, stage) * one.card.bandwidth / 2 - rows * 2000 * stage.cache
        for rows in (1, 64)
    ]
    assert reads[0] == pytest.approx(stage.dense + stage.head + stage.experts / 8)
    assert reads[1] == pytest.approx(stage.dense + stage.head + stage.experts * (1 - (7 / 8) ** 64))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    plan_command.main(["molmo_72b", "ds_configs/infer/tp8.json", "2x8"])
    said = capsys.readouterr().out
    for figure in (
        "2 replicas of 8 x 1",
        "20.1 GiB",
        "602",
        "320 KiB",
        "7.4 ms",
        "12,85",
        "20,44",
        "325 ms",
        "38,1",
    ):
        assert figure in said, said
    plan_command.main(["molmo_72b", "ds_configs/infer/tp8.json", "2x8", "card.memory=30e9"])
    assert "does not fit: use 55 slots" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="card.wheels is no number of a GPU; these are: .*bandwidth"
    ):
        plan_command.main(["molmo_72b", "ds_configs/infer/tp8.json", "2x8", "card.wheels=4"])
    with pytest.raises(ValueError, match="8 x 2 GPUs, and 8 are no multiple"):
        plan_command.main(["molmo_72b", "ds_configs/infer/tp8_pp2.json", "8"])
    with pytest.raises(ValueError, match=r"^ds_configs/infer/tp8.json: HeMolmo passes its decoder"):
        plan_command.main(["hemolmo_7b_d", "ds_configs/infer/tp8.json", "8"])


def prompts(count: int, tokens: int) -> Batch:
    """Text alone, packed."""
    sample = text_sample(torch.arange(tokens) % 90)
    return collate([[sample] * count], count * tokens)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("inner", [256, 2048])
def test_a_prefill_takes_what_is_planned(
    inner: int, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most bytes that a pass over a packed prompt allocates: an MLP, or the attention, is the widest."""
    if not kernels:
        monkeypatch.setattr(cpu_library, "load", lambda: None)
    elif cpu_library.load() is None:
        pytest.skip("no g++")
    sizes = {
        "hidden_size": 256,
        "intermediate_size": inner,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
    }
    text = replace(synthetic.MODEL.text, max_position_embeddings=1024, **sizes)
    config = replace(synthetic.MODEL, text=text)
    model = Molmo(config).eval()
    batch = prompts(4, 256)
    with torch.no_grad():
        model.body(batch)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as trace:
            model.body(batch)
    events = trace.profiler.kineto_results.events()
    changes = [
        change
        for _, change in sorted(
            (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"
        )
    ]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    made = answering(config, 1, 1, 1, size=4)
    assert made.weights == weights
    planned = made.peak(Limits(slots=0, slot_tokens=1024, prefill_tokens=1024), on_gpu=False)
    assert planned == pytest.approx(weights + max(itertools.accumulate(changes)), rel=0.1)
    slots = Limits(slots=8, slot_tokens=100, prefill_tokens=1024)
    # two key-value heads of 32
    assert made.peak(slots, on_gpu=False) - planned == 4 * 8 * 100 * 2 * 3 * 2 * 32
