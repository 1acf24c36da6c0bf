"""Checkpoints: exact at the same size, equal at another size and strategy, whole or not there."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, launch
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.copies import Copies
from molmo_ds.hub import load
from molmo_ds.testing import synthetic
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import checkpoint
from molmo_ds.weights.first_weights import first_weights

HALF, STEPS = 2, 4
BATCH = 12  # divides by 1, 2, 3 and 4 ranks
WRITERS = [("zero1", 2), ("zero3", 2), ("zero0", 1)]
PAIRS = {  # ranks -> (reader, writer); test_resume_elsewhere.py goes on with every strategy
    2: [("zero2", ("zero0", 1))],
    3: [("zero3", ("zero1", 2)), ("zero1", ("zero3", 2))],
}
IN_BF16 = ["zero3"]
if EVERYTHING:
    WRITERS += [("zero2", 2), ("zero3", 4)]
    PAIRS = {
        1: [("zero1", ("zero3", 4)), ("zero3", ("zero1", 2)), ("zero0", ("zero2", 2))],
        2: [*PAIRS[2], ("zero3", ("zero3", 4))],
        3: PAIRS[3],
        4: [("zero0", ("zero3", 2)), ("zero3", ("zero2", 2))],
    }
    IN_BF16 += ["zero1"]


def config(strategy: str, ranks: int = 1, **changes) -> RunConfig:
    """AdamW with clipping and three learning rates."""
    sizes = {"global_batch": BATCH, "micro_batch": max(BATCH // ranks // 2, 1)}
    return synthetic.adamw(strategy=f"ds_configs/{strategy}.json", **sizes, **changes)


def steps(engine, run: RunConfig, world: World, first: int, last: int) -> list[float]:
    """Losses of the updates first + 1 ... last."""
    batches = (
        synthetic.micro_batches(run, step, world.rank, world.size) for step in range(first, last)
    )
    return [engine.train_step(batch)["loss"] for batch in batches]


def lanes(world: World, step: int) -> dict[int, dict]:
    """What this rank's lanes would remember."""
    count = BATCH // world.size
    return {
        lane: {"step": step, "lane": lane}
        for lane in range(world.rank * count, (world.rank + 1) * count)
    }


def write(
    world: World, folder: str, strategies: list[str], precision: str = "fp32"
) -> dict[str, dict]:
    """Train, save in the middle, go on; resume at the same size; what was seen."""
    out = {}
    for strategy in strategies:
        run = config(strategy, world.size, precision=precision, async_save=strategy != "zero1")
        path = f"{folder}/{strategy}-{world.size}"
        engine = build_engine(run, world)
        before = steps(engine, run, world, 0, HALF)
        engine.save(path, lanes(world, HALF))
        after = steps(engine, run, world, HALF, STEPS)  # while the files are being written
        engine.close()
        weights = dict(engine.full_state())
        engine = build_engine(run, world)
        data = engine.load(path)
        assert engine.step == HALF and data == {
            lane: {"step": HALF, "lane": lane} for lane in range(BATCH)
        }
        again = steps(engine, run, world, HALF, STEPS)
        assert all(torch.equal(weight, weights[name]) for name, weight in engine.full_state())
        out[strategy] = {"before": before, "after": after, "again": again, "weights": weights}
    return out


def read(world: World, folder: str, pairs: list[tuple[str, tuple[str, int]]]) -> dict:
    """Resume under each strategy from its writer; losses of the second half and final weights."""
    out = {}
    for strategy, (writer, size) in pairs:
        run = config(strategy, world.size)
        engine = build_engine(run, world)
        engine.load(f"{folder}/{writer}-{size}")
        out[strategy, world.size, writer, size] = (
            steps(engine, run, world, HALF, STEPS),
            dict(engine.full_state()),
        )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[tuple[str, int], dict]:
    out = {}
    for size in (1, 2, 4):
        names = [strategy for strategy, ranks in WRITERS if ranks == size]
        out |= {
            (name, size): run for name, run in run_ranks(write, size, str(folder), names)[0].items()
        }
    return out


@pytest.fixture(scope="module")
def resumed(folder: Path, written: dict) -> dict[tuple, tuple]:
    out = {}
    for size, pairs in PAIRS.items():
        out |= run_ranks(read, size, str(folder), pairs, timeout=240)[0]
    return out


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_same_size_goes_on_bitwise(written: dict, writer: tuple) -> None:
    run = written[writer]
    assert run["again"] == run["after"] and len(set(run["after"])) == STEPS - HALF


def test_bf16_goes_on_bitwise(tmp_path: Path) -> None:
    runs = run_ranks(write, 2, str(tmp_path), IN_BF16, "bf16")[0]
    for run in runs.values():
        assert run["again"] == run["after"]
        masters = run["weights"]["layers.0.mlp.up_proj.weight"]
        assert not torch.equal(masters, masters.bfloat16().float()), (
            "the saved weights are not the fp32 masters"
        )


def late(world: World, folder: str, strategies: list[str], waits: bool) -> dict[str, bool]:
    """Whether a checkpoint holds what it was asked to where its copy begins after the next step's forward pass."""
    finish = Copies.finish
    changes = {} if waits else {"wait": lambda copies: None}

    def later(copies: Copies, names: list[str]) -> dict[str, Tensor]:
        time.sleep(0.5 if waits else 3.0)
        return finish(copies, names)

    out = {}
    with mock.patch.multiple(Copies, finish=later, **changes):
        for strategy in strategies:
            run = config(strategy, world.size, async_save=True)
            engine = build_engine(run, world)
            places = engine.data_rank, engine.data_size
            engine.train_step(synthetic.micro_batches(run, 0, *places))
            asked = {name: weight.clone() for name, weight in engine.full_state()}
            engine.save(f"{folder}/{strategy}", {})
            engine.train_step(synthetic.micro_batches(run, 1, *places))
            engine.close()
            moved = dict(engine.full_state())
            assert engine.load(f"{folder}/{strategy}") is not None
            got = dict(engine.full_state())
            assert any(not torch.equal(moved[name], asked[name]) for name in asked)
            out[strategy] = all(torch.equal(got[name], asked[name]) for name in asked)
    return out


def test_an_update_waits_for_the_copy_of_a_save(tmp_path: Path) -> None:
    names = ["zero1", "zero3", "pipe_zero1"]
    seen = run_ranks(late, 2, str(tmp_path), names, True, timeout=240)[0]
    assert seen == dict.fromkeys(names, True)
    seen = run_ranks(late, 2, str(tmp_path / "wrong"), ["zero1"], False)[0]
    assert seen == {"zero1": False}


def test_any_size_and_strategy_goes_on(written: dict, resumed: dict) -> None:
    whole = written["zero0", 1]
    assert len(resumed) == sum(map(len, PAIRS.values()))
    for key, (losses, weights) in resumed.items():
        assert losses == pytest.approx(whole["after"], abs=1e-5), key
        for name, weight in weights.items():
            # an update is as long as the learning rate; a wrong rate, decay or Adam step of a group is 1e-2 off
            torch.testing.assert_close(
                weight, whole["weights"][name], atol=1e-4, rtol=1e-4, msg=f"{key} {name}"
            )


def test_full_state_without_ranks(folder: Path, written: dict) -> None:
    for writer in WRITERS:
        path = folder / f"{writer[0]}-{writer[1]}"
        state = dict(checkpoint.read_full_state(path))
        weights = written[writer]["weights"]
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in weights.items()}
        assert torch.equal(state["embed.embedding"], weights["embed.embedding"])
        moved = state["head.lm_head.weight"] - weights["head.lm_head.weight"]
        assert 0 < float(moved.abs().max()) < 0.1  # it is the state in the middle, not at the end
    found = checkpoint.open_checkpoint(checkpoint.find(folder / "zero3-2"))
    first = found.whole("head.lm_head.weight", "exp_avg")
    other = checkpoint.open_checkpoint(checkpoint.find(folder / "zero1-2")).whole(
        "head.lm_head.weight", "exp_avg"
    )
    torch.testing.assert_close(first, other, atol=1e-6, rtol=1e-4)


def test_weights_alone_start_a_run(folder: Path, written: dict, tmp_path: Path) -> None:
    source = folder / "zero3-2"
    load.consolidate(source, tmp_path / "weights")
    assert load.read_config(tmp_path / "weights") == synthetic.MODEL
    with pytest.raises(ValueError, match="exists already"):
        load.consolidate(source, tmp_path / "weights")
    read = first_weights(config("zero1", init_from=str(tmp_path / "weights")))
    for name, tensor in checkpoint.read_full_state(source):
        size = tensor.numel()
        for first, last in ((0, size), (size // 3, size // 3 + 1), (1, size - 1), (size, size)):
            part = read(name, tuple(tensor.shape), first, last)
            assert torch.equal(part, tensor.reshape(-1)[first:last]), (name, first, last)
    with pytest.raises(ValueError, match="has shape"):
        read("head.lm_head.weight", (1, 2), 0, 2)
    with pytest.raises(ValueError, match="another architecture"):
        read("nothing", (1,), 0, 1)


def alone(world: World, folder: str, run: RunConfig) -> tuple[int, str]:
    """(step found, complaint) of a load on one rank."""
    try:
        engine = build_engine(run, world)
        engine.load(folder)
        return engine.step, ""
    except ValueError as error:
        return -1, str(error)


def many(world: World, folder: str, runs: dict[str, RunConfig]) -> dict[str, tuple[int, str]]:
    """The same of several configurations."""
    return {name: alone(world, folder, run) for name, run in runs.items()}


def test_what_does_not_fit_is_an_error(folder: Path, written: dict) -> None:
    run = config("zero1")
    text = replace(run.model.text, intermediate_size=64)
    layers = replace(run.model.text, num_hidden_layers=3)
    runs = {
        "optimizer": replace(run, optim=replace(run.optim, name="sgd")),
        "shape": replace(run, model=replace(run.model, text=text)),
        "layers": replace(run, model=replace(run.model, text=layers)),
        "thawed": replace(run, optim=replace(run.optim, freeze_embedding=False)),
    }
    seen = run_ranks(many, 1, str(folder / "zero3-2"), runs)[0]
    assert "optim.name=adamw" in seen["optimizer"][1]
    assert "has shape" in seen["shape"][1]
    assert "belongs to another model" in seen["layers"][1]
    assert "no optimizer state" in seen["thawed"][1]


def damaged(path: Path, how: str) -> None:
    """Hurt a checkpoint."""
    file = path / "rank-00001.safetensors"
    blob = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(blob[: len(blob) // 2])
    elif how == "flipped":
        blob[len(blob) // 2] ^= 1
        file.write_bytes(blob)
    elif how == "missing":
        file.unlink()
    elif how == "unfinished":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text('{"format": 1, "files"')


DAMAGES = {
    "truncated": "instead of", "missing": "is missing", "unfinished": "did not finish", "manifest": "cannot be read",
}  # fmt: skip


def save_three(world: World, folder: str) -> None:
    """Steps 1, 2 and 3, of which the last two are kept."""
    run = config("zero1", 2, keep_checkpoints=2)
    engine = build_engine(run, world)
    for step in range(3):
        steps(engine, run, world, step, step + 1)
        engine.save(folder, lanes(world, step + 1))
    engine.close()


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(save_three, 2, str(folder))
    return folder


def test_keeps_the_newest(two_checkpoints: Path) -> None:
    assert sorted(p.name for p in two_checkpoints.iterdir()) == [
        "latest",
        "step-00000002",
        "step-00000003",
    ]
    assert (two_checkpoints / "latest").read_text() == "step-00000003\n"


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_found_and_the_one_before_is_used(
    two_checkpoints: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    folder = shutil.copytree(two_checkpoints, tmp_path / "copy")
    damaged(folder / "step-00000003", how)
    assert DAMAGES[how] in checkpoint.what_is_wrong(folder / "step-00000003")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.find(folder).name == "step-00000002"
    assert DAMAGES[how] in caplog.text
    damaged(folder / "step-00000002", how)
    with pytest.raises(ValueError, match="none of its checkpoints is whole"):
        checkpoint.find(folder)


def test_resume_passes_over_damage(two_checkpoints: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(two_checkpoints, tmp_path / "copy")
    damaged(folder / "step-00000003", "flipped")
    with pytest.raises(ValueError, match=r"step-00000003 .* checksum of rank-00001.safetensors"):
        list(checkpoint.read_full_state(folder))
    assert run_ranks(alone, 1, str(folder), config("zero0"))[0] == (2, "")
    damaged(folder / "step-00000002", "truncated")
    step, complaint = run_ranks(alone, 1, str(folder), config("zero0"))[0]
    assert step == -1 and "None of the 2 checkpoints" in complaint


def test_every_nth_stays(tmp_path: Path) -> None:
    from molmo_ds.engine.save.writer import Writer

    for step in range(10, 70, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "manifest.json").write_text(json.dumps({}))
    writer = Writer(
        replace(config("zero1"), keep_checkpoints=1, keep_every=2, save_interval=10), launch.alone()
    )
    writer.place = writer._destination(str(tmp_path), 60)
    writer._prune()
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [20, 40, 60]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_costs_no_new_one(tmp_path: Path, keep: int) -> None:
    """A run that went back behind damaged checkpoints keeps what it saves, though their numbers are higher."""
    from molmo_ds.engine.save.writer import Writer

    for step in (10, 20, 25, 30, 40):  # 30 and 40 are damaged, 25 was just saved
        (tmp_path / f"step-{step:08d}").mkdir()
    writer = Writer(replace(config("zero1"), keep_checkpoints=keep), launch.alone())
    writer.place = writer._destination(str(tmp_path), 25)
    writer._prune()
    left = sorted(int(p.name[5:]) for p in tmp_path.iterdir())
    assert left == ([25, 30, 40] if keep == 1 else [20, 25, 30, 40])
