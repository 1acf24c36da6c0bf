"""LoRA under ZeRO: equal at start, the base stays, every strategy alike, merged wherever weights leave the run."""

from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
import torch
from ranks import run_ranks

from molmo_ds.config import LoraConfig, RunConfig
from molmo_ds.engine import build_engine, checkpoint, ds_config
from molmo_ds.engine.launch import World
from molmo_ds.model import lora
from molmo_ds.model.molmo import Molmo, component

LORA = LoraConfig(("vision", "text"), rank=3, alpha=6.0)


def run(stage: int, **changes) -> RunConfig:
    return synthetic.config(strategy=f"ds_configs/zero{stage}.json", lora=LORA, **changes)


def train(world: World, stages: list[int], folder: str) -> dict[int, tuple]:
    """Held-out loss at the start, two losses, merged weights and held-out loss, and the third step after a resume."""
    out = {}
    for stage in stages:
        config, where = run(stage), f"{folder}/{world.size}-{stage}"
        engine = build_engine(config, world)

        def batches(step: int, config: RunConfig = config) -> list:
            return synthetic.micro_batches(config, step, world.rank, world.size)

        start = engine.eval_loss(batches(10))["loss"]
        losses = [engine.train_step(batches(step))["loss"] for step in (1, 2)]
        weights, held_out = dict(engine.full_state()), engine.eval_loss(batches(10))["loss"]
        engine.save(where, {})
        engine.close()
        losses.append(engine.train_step(batches(3))["loss"])
        again = build_engine(config, world)
        again.load(where)
        out[stage] = start, losses, weights, held_out, again.train_step(batches(3))["loss"]
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[tuple]:
    one, two = run_ranks(train, 1, [0], str(folder)), run_ranks(train, 2, [1, 3], str(folder), timeout=180)
    return [one[0][0], two[0][1], two[0][3]]


def held_out(weights: dict[str, torch.Tensor]) -> float:
    """The loss of a network without adapters on what the engines were held out from."""
    model = Molmo(synthetic.MODEL)
    model.load_state_dict(weights)
    lanes = [synthetic.sequence(10, lane) for lane in range(8)]
    total = sum(float(batch.loss_weights.double().sum()) for batch in lanes)
    with torch.no_grad():
        return sum(float(sum(model(batch)[:2])) for batch in lanes) / total


def test_strategies_agree_and_resume(runs: list[tuple]) -> None:
    for _, losses, weights, _, resumed in runs:
        assert losses == pytest.approx(runs[0][1], abs=1e-5) and losses[0] != losses[1]
        assert resumed == pytest.approx(losses[2], abs=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, runs[0][2][name], atol=2e-6, rtol=1e-5, msg=name)


def test_equal_at_the_start_and_merged_at_the_end(runs: list[tuple]) -> None:
    first = Molmo(synthetic.MODEL)
    first.reset_parameters(RunConfig.seed)
    first = first.state_dict()
    for start, _, weights, after, _ in runs:
        assert weights.keys() == first.keys(), "the adapters are no weights of their own outside the run"
        assert start == pytest.approx(held_out(first), abs=1e-5)
        assert after == pytest.approx(held_out(weights), abs=1e-5) and abs(after - start) > 1e-3
        moved = {name for name in weights if not torch.equal(weights[name], first[name])}
        # connector: trained whole; block 2 of the tower is behind the features; an adapter changes weights, not biases
        linear = {n for n in first if n.endswith("_proj.weight") or ".fc" in n or "patch_embedding" in n}
        linear = {n for n in linear if n.endswith(".weight") and not n.startswith("vision.layers.2.")}
        expected = {n for n in first if component(n) == "connector"} | linear
        assert moved <= expected and {n for n in linear if component(n) != "connector"} <= moved


def test_checkpoint_without_ranks_is_merged(runs: list[tuple], folder: Path) -> None:
    for name, weight in checkpoint.read_full_state(folder / "2-3"):
        assert torch.equal(weight, runs[2][2][name]), name
    config = run(0, init_from=str(folder / "2-3"))
    whole = checkpoint.first_weights(config)
    name = "layers.0.mlp.down_proj"
    assert torch.equal(whole(f"{name}.weight", (32, 48)), runs[2][2][f"{name}.weight"])
    down, up = whole(f"{name}.lora_A.weight", (3, 48)), whole(f"{name}.lora_B.weight", (32, 3))
    assert up.abs().sum() == 0 < down.abs().sum()


def test_mistakes() -> None:
    for changes, words in (
        ({"components": ("head",)}, "lora.components has 'head'"),
        ({"rank": 0}, "lora.rank must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            lora.adapt(Molmo(synthetic.MODEL), replace(LORA, **changes))
    with pytest.raises(ValueError, match="adapters are not split .* strategy=ds_configs/zero3.json"):
        ds_config.refuse(ds_config.read("ds_configs/zero3_tp.json"), run(3), 2)
