"""strategy=auto: which file each released model gets, by formulas of what ZeRO holds; the same on every rank."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine import strategy
from molmo_ds.engine.launch import World, alone
from molmo_ds.engine.plan import choice, host_time, plan_memory
from molmo_ds.engine.plan.choice import ALONE, LEFT_OUT, ORDER, Room
from molmo_ds.engine.plan.plan_inference import CARD
from molmo_ds.testing import tables
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.ranks import run_ranks

H100 = Room(device=85e9 - choice.RESERVED, host=2e12 / 8)
WORLDS = (1, 8, 64)
# by the plan, on 1, 8 and 64 GPUs
CHOSEN = {
    "molmo_7b_d": ("zero3_offload", "zero2", "zero1"),
    "molmo_7b_o": ("zero3_offload", "zero2", "zero1"),
    "molmo_72b": (None, "zero3_offload", "zero3"),
    "molmoe_1b": ("zero3_offload", "zero1", "zero1"),
    "molmo2_4b": ("zero0", "zero1", "zero1"),
    "molmo2_8b": ("zero3_offload", "zero2", "zero2"),
    "molmo2_o_7b": ("zero3_offload", "zero2", "zero1"),
}
USUAL = ("molmo_7b_d", "molmo_72b", "molmoe_1b", "molmo2_8b")  # without --all


def run(preset: str, world: int) -> RunConfig:
    """A run of a released model, one sequence a rank, layers recomputed."""
    words = f"preset={preset}", f"global_batch={world}", "activation_checkpointing=full"
    return settings.load(None, [*words, "strategy=auto"])


def numbers(config: RunConfig) -> tuple[int, int]:
    """Parameters, and those of them that learn."""
    rows = plan_memory.parameters(config.model, config.optim, config.lora)
    learning = sum(size for _, size, frozen, _ in rows if not frozen)
    return sum(size for _, size, *_ in rows), learning


def state(name: str, world: int, parameters: int, learning: int) -> float:
    """Bytes that a strategy holds from step to step, in fp32: weights 4, gradients 4, AdamW's moments 8.

    From stage 1 on ZeRO has a second copy of the weights that learn, split over the ranks.
    """
    return {
        "zero0": 4 * parameters + 12 * learning,
        "zero1": 4 * parameters + 4 * learning + 12 * learning / world,
        "zero2": 4 * parameters + 16 * learning / world,
        "zero3": 4 * parameters / world + 16 * learning / world,
        "zero3_sp": 4 * parameters / world + 16 * learning / world,
        "zero3_tp": 4 * parameters / world + 16 * learning / world,
        "zero3_offload": 0,
    }[name]


@pytest.mark.parametrize("preset", CHOSEN if EVERYTHING else USUAL)
def test_released_models(preset: str) -> None:
    sizes = numbers(run(preset, 1))
    for world, expected in zip(WORLDS, CHOSEN[preset]):
        config = run(preset, world)
        tried = []
        for one in choice.candidates(config, world, H100):
            tried.append(one)
            if one.fits:
                break
        for one in tried:
            held = state(one.name, world, *sizes)
            assert held * 0.999 < one.device, (world, one)
            # what comes on top of the state: buckets, gathered weights, activations, logits
            assert one.fits or one.device < held + 200e9, (world, one)
        assert all(not one.fits for one in tried[:-1])
        if expected is None:
            assert not tried[-1].fits
            with pytest.raises(ValueError, match="nothing fits into 75.5 GB usable on one GPU"):
                choice.choose(config, world, H100)
            continue
        made = choice.choose(config, world, H100)
        assert made.path == f"ds_configs/{expected}.json"
        assert f"{tried[-1].device / 1e9:.1f} GB planned of 75.5 GB usable" in made.sentence
        assert all(f"{one.name} {one.device / 1e9:.1f} GB" in made.sentence for one in tried[:-1])


def test_cpu_has_one_memory_for_all() -> None:
    config = run("molmo2_4b", 2)
    room = Room(device=24 * 2**30, host=0.0, on_gpu=False)
    with pytest.raises(ValueError, match="on each of 2 ranks; the nearest is ds_configs/") as told:
        choice.choose(config, 2, room)
    nearest = min(choice.candidates(config, 2, room), key=lambda one: one.device)
    assert f"{nearest.path} with {nearest.device / 1e9:.1f} GB." in str(told.value)
    large = choice.choose(config, 2, replace(room, device=1e12))
    assert large.path == "ds_configs/zero1.json"


def test_experts_before_all_weights_are_gathered() -> None:
    """Where every expert on every GPU is too much, experts are spread before weights are."""
    config = run("molmoe_1b", 8)
    names = [one.name for one in choice.candidates(config, 8, H100)]
    assert names == [name for name in ORDER if name in names] and "zero2_ep" in names
    planned = {one.name: one for one in choice.candidates(config, 8, H100)}
    room = replace(H100, device=choice.MARGIN * (planned["zero2"].device - 1))
    assert choice.choose(config, 8, room).path == "ds_configs/zero2_ep.json"
    # a dense model is offered none of them
    dense = [one.name for one in choice.runnable(run("molmo_7b_d", 8), 8)]
    whole = ["zero1", "zero2", "zero3", "zero3_sp", "zero3_tp"]
    assert dense == [*whole, "zero3_offload", "zero3_tp_offload"]


def test_every_file_has_a_place_or_a_reason() -> None:
    files = {file.stem for file in Path("ds_configs").glob("*.json")}
    assert files == {*ORDER, *ALONE, *LEFT_OUT}
    assert not set(ORDER) & set(LEFT_OUT)


def test_nothing_can_run() -> None:
    with pytest.raises(ValueError, match="nothing can run on 3 ranks: global_batch=4"):
        choice.choose(replace(run("tiny", 4)), 3, H100)


def unlike(world: World, config: RunConfig, folder: Path, totals: tuple[float, float]) -> str:
    """The choice of a rank whose machine has its entry of `totals` bytes."""
    choice.psutil = SimpleNamespace(
        virtual_memory=lambda: SimpleNamespace(total=totals[world.rank])
    )
    return choice.settled(config, world, folder).strategy


def test_ranks_with_unlike_memory_take_the_same(tmp_path: Path) -> None:
    config = run("tiny", 2)
    room = Room(device=1e12, host=0.0, on_gpu=False)
    planned = {one.name: one.device for one in choice.candidates(config, 2, room)}
    expected = next(name for name in ORDER if planned.get(name, 1e12) < planned["zero1"])
    small = 2 * choice.MARGIN * (planned["zero1"] - 1)  # two ranks share it
    for totals in ((1e12, small), (small, 1e12)):
        taken = run_ranks(unlike, 2, config, tmp_path, totals)
        assert taken == [f"ds_configs/{expected}.json"] * 2


def test_goes_on_with_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run("tiny", 1)
    saved = replace(config, strategy="ds_configs/zero2.json")
    with caplog.at_level(logging.INFO, "molmo_ds"):
        assert choice.settled(config, alone(), tmp_path).strategy == "ds_configs/zero0.json"
        settings.save(saved, tmp_path / "config.yaml")
        assert choice.settled(config, alone(), tmp_path).strategy == saved.strategy
        assert "ds_configs/zero2.json as before" in caplog.messages[-1]
        fresh = replace(config, resume=False)
        assert choice.settled(fresh, alone(), tmp_path).strategy == "ds_configs/zero0.json"
        told = replace(config, strategy="ds_configs/zero3.json")
        assert choice.settled(told, alone(), tmp_path) is told
    # a strategy that needs two ranks does not go on with one
    settings.save(replace(config, strategy="ds_configs/zero3_sp.json"), tmp_path / "config.yaml")
    assert choice.settled(config, alone(), tmp_path).strategy == "ds_configs/zero0.json"


def test_where_auto_is_no_file() -> None:
    with pytest.raises(ValueError, match="strategy=auto is for molmo-ds train, launch and plan"):
        strategy.read_strategy("auto")


@pytest.mark.parametrize(
    "preset, tokens, sequences, bound",
    [
        ("qwen2_1b5", 2304, 1, True),  # 36 TFLOP at 450 a second
        ("qwen2_1b5", 2304, 2, True),  # 72
        ("qwen2_1b5", 2304, 4, False),  # 143
        ("molmo_7b_d", 2304, 1, False),  # 113
        ("molmo_72b", 2304, 1, False),
    ],
)
def test_from_which_size_on_the_host_is_not_the_limit(
    preset: str, tokens: int, sequences: int, bound: bool
) -> None:
    words = f"preset={preset}", f"micro_batch={sequences}", f"global_batch={8 * sequences}"
    data = f"data.sequence_length={tokens}", "data.crops_per_sequence=13"
    config = settings.load(None, [*words, *data])
    zero1, zero3 = (
        strategy.read_strategy(f"ds_configs/{name}.json") for name in ("zero1", "zero3")
    )
    assert ("take zero1 or zero2" in host_time.told(config, zero3, CARD)) == bound
    assert "take zero1" not in host_time.told(config, zero1, CARD)
    assert host_time.of_host(config, zero1) < host_time.of_host(config, zero3)


def test_the_hosts_time_of_a_layer_is_the_measured_one() -> None:
    """tools/bench/bench_host.py has 24 + 28 layers; docs/evidence/gpu.md has its table."""
    measured = {
        (name, again): float(median.replace(",", "")) / 1e3
        for name, again, hooks, median, _ in tables.read("host time of a step")
        if hooks != "DeepSpeed's"
    }
    for again, layer in (("none", host_time.LAYER), ("full", host_time.AGAIN)):
        assert layer[False] == pytest.approx(measured["zero1", again] / 52, rel=0.02)
        assert layer[True] == pytest.approx(measured["zero3", again] / 52, rel=0.02)
