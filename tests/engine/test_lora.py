"""LoRA under every strategy: equal at start, the base stays, all train alike, merged wherever weights leave the run."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handing_on import hand_on
from torch import Tensor
from transformers import AutoModelForCausalLM

from molmo_ds.batch import Batch
from molmo_ds.config import ComponentConfig, LoraConfig, RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.hub import adapters, export, load
from molmo_ds.model import lora
from molmo_ds.model.molmo import Molmo, component
from molmo_ds.testing import synthetic
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.oracle import difference, family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import checkpoint
from molmo_ds.weights.first_weights import first_weights

STEPS, LIMIT = 3, 1.5  # the limit clips some components at some steps
BOTH, TEXT = (
    LoraConfig(components=("vision", "text"), rank=3, alpha=24.0),
    LoraConfig(components=("text",), rank=3, alpha=24.0),
)
# decoder ("still": nothing else learns), strategy, micro-batch, recomputed
Case = tuple[str, str, int, str]
TWO: list[Case] = [
    ("qwen2", "zero3", 2, "full"),
    ("still", "pipe_zero1", 1, "none"),
    ("qwen2", "zero3_tp", 4, "none"),
    ("olmoe", "zero3_ep", 4, "full"),
]
FOUR: list[Case] = [("olmoe", "zero3_ep_tp", 4, "none")]
if EVERYTHING:
    TWO += [
        ("qwen2", "zero3_sp", 2, "none"),
        ("qwen2", "zero3_tp", 2, "none"),
        ("qwen2", "pipe_zero1", 2, "full"),
        ("olmoe", "zero2_ep", 2, "none"),
        ("olmoe", "zero3_ep", 1, "full"),
    ]
    FOUR += [
        ("qwen2", "zero3_tp", 2, "full"),
        ("olmoe", "pipe_zero1_ep", 2, "none"),
        ("olmoe", "zero3_ep_tp", 2, "none"),
    ]
# one step each, under AdamW, the files handed on
CHAINS = {
    2: ["zero3", "zero3_tp", "pipe_zero1", "zero3_ep", "zero3_ep"],
    4: ["pipe_zero1_ep", "zero3_ep_tp"],
}
if EVERYTHING:  # each goes on with its own files as well
    CHAINS[2] = ["zero3", *["zero3_tp"] * 2, *["pipe_zero1"] * 2, "zero2_ep", *["zero3_ep"] * 2]
    CHAINS[4] = [*["pipe_zero1_ep"] * 2, *["zero3_ep_tp"] * 2]


def sgd(case: Case) -> RunConfig:
    """SGD, whose updates show an error of gradient scale that Adam would hide, with clipping."""
    model, strategy = (
        family("qwen2" if case[0] == "still" else case[0]),
        f"ds_configs/{case[1]}.json",
    )
    run = synthetic.config(
        model=model, strategy=strategy, micro_batch=case[2], activation_checkpointing=case[3]
    )
    still = case[0] == "still"
    connector, vision = (
        ComponentConfig(lr=0.2, warmup_steps=2, freeze=still),
        ComponentConfig(lr=0.3, warmup_steps=0, freeze=still),
    )
    optim = replace(
        run.optim,
        max_grad_norm=LIMIT,
        connector=connector,
        vision=vision,
        text=ComponentConfig(lr=0.2, warmup_steps=1),
    )
    return replace(
        run, optim=optim, lora=TEXT if still else BOTH, max_steps=STEPS, check_collectives=True
    )


def adamw(strategy: str, steps: int) -> RunConfig:
    return synthetic.adamw(
        model=family("olmoe"), strategy=f"ds_configs/{strategy}.json", lora=BOTH, max_steps=steps
    )


def train(world: World, cases: list[Case], folder: str) -> dict[Case, tuple]:
    """Held-out loss at the start, the log of each step, merged weights, held-out loss."""
    out = {}
    for case in cases:
        fresh_groups()
        config = sgd(case)
        engine = build_engine(config, world)

        def batches(step: int, config: RunConfig = config, engine=engine) -> list[Batch]:
            return synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)

        start = engine.eval_loss(batches(10))["loss"]
        log = [engine.train_step(batches(step)) for step in range(1, STEPS + 1)]
        weights, held_out = dict(engine.full_state()), engine.eval_loss(batches(10))["loss"]
        engine.save(f"{folder}/{world.size}-{'-'.join(map(str, case))}", {})
        engine.close()
        out[case] = start, log, weights, held_out
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[tuple[int, Case], tuple]:
    ranks = {
        n: run_ranks(train, n, cases, str(folder), timeout=240)
        for n, cases in ((2, TWO), (4, FOUR))
    }
    for outs in ranks.values():
        for case, (_, log, *_) in outs[0].items():
            assert all(other[case][1] == log for other in outs), "ranks log different numbers"
    return {(n, case): run for n, outs in ranks.items() for case, run in outs[0].items()}


@pytest.fixture(scope="module")
def oracles() -> dict[str, tuple]:
    return {name: plain(sgd((name, "zero0", 8, "none"))) for name in ("qwen2", "still", "olmoe")}


KEYS = [(2, case) for case in TWO] + [(4, case) for case in FOUR]
each = pytest.mark.parametrize(
    "key", KEYS, ids=lambda key: f"{key[0]}-" + "-".join(map(str, key[1]))
)


def stored(folder: Path, key: tuple[int, Case]) -> dict[str, Tensor]:
    """Base and adapters as the run saved them."""
    found = checkpoint.open_checkpoint(
        checkpoint.find(folder / "-".join(map(str, (key[0], *key[1]))))
    )
    return {name: found.whole(name) for name in found.shapes}


def held_out(model: Molmo) -> float:
    """The loss on what the engines were held out from."""
    lanes = [synthetic.sequence(10, lane) for lane in range(8)]
    total = sum(float(batch.loss_weights.double().sum()) for batch in lanes)
    with torch.no_grad():
        return sum(float(sum(model(batch)[:2])) for batch in lanes) / total


def first(decoder: str) -> Molmo:
    """A network without adapters as the runs begin."""
    model = Molmo(sgd((decoder, "zero0", 8, "none")).model)
    model.reset_parameters(RunConfig.seed)
    return model


@each
def test_equals_one_plain_process(runs: dict, oracles: dict, folder: Path, key: tuple) -> None:
    losses, norms, expected = oracles[key[1][0]]
    for values, loss, parts in zip(runs[key][1], losses, norms, strict=True):
        assert values["loss"] == pytest.approx(loss, abs=1e-5)
        for part, norm in parts.items():
            assert values[f"grad_norm/{part}"] == pytest.approx(norm, rel=1e-5), part
    weights = stored(folder, key)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=3e-6, rtol=1e-5, msg=name)


def test_what_the_equality_rests_on(oracles: dict) -> None:
    limited = [
        norm for oracle in oracles.values() for parts in oracle[1] for norm in parts.values()
    ]
    assert min(n for n in limited if n) < LIMIT < max(limited), "clipping must act on some only"
    for decoder, (_, _, weights) in oracles.items():
        model = first(decoder)
        lora.adapt(model, TEXT if decoder == "still" else BOTH)
        model.reset_parameters(RunConfig.seed)
        begun = model.state_dict()
        assert not any(".mlp.gate.lora_" in name for name in weights), "the router has no adapter"
        # an adapter's A begins to move at the second step only
        for name, weight in weights.items():
            moved = float((weight - begun[name]).abs().max())
            if ".lora_" in name and not name.startswith("vision.layers.2."):
                assert moved > 4e-5, f"{name} moves too little to be compared"
            elif lora.is_base(name, TEXT if decoder == "still" else BOTH):
                assert moved == 0, name


@each
def test_equal_at_the_start_and_merged_at_the_end(runs: dict, folder: Path, key: tuple) -> None:
    start, _, weights, after = runs[key]
    model, decoder = first(key[1][0]), key[1][0]
    begun = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert weights.keys() == begun.keys(), (
        "the adapters are no weights of their own outside the run"
    )
    assert start == pytest.approx(held_out(model), abs=1e-5)
    model.load_state_dict(weights)
    assert after == pytest.approx(held_out(model), abs=1e-5) and abs(after - start) > 1e-4
    moved = {name for name in weights if not torch.equal(weights[name], begun[name])}
    # block 2 of the tower comes after the features; an adapter changes weights, not biases
    adapted = ("text",) if decoder == "still" else ("vision", "text")
    linear = {
        n for n in begun if n.endswith("_proj.weight") or ".fc" in n or "patch_embedding" in n
    }
    linear = {n for n in linear if n.endswith(".weight") and not n.startswith("vision.layers.2.")}
    linear = {n for n in linear if component(n) in adapted}
    whole = {n for n in begun if component(n) == "connector" and decoder != "still"}
    assert linear <= moved <= linear | whole
    path = folder / "-".join(map(str, (key[0], *key[1])))
    for name, weight in checkpoint.read_full_state(path):  # without launching ranks
        assert torch.equal(weight, weights[name]), name


def test_a_run_begins_with_merged_weights(runs: dict, folder: Path) -> None:
    config = replace(sgd(TWO[0]), init_from=str(folder / "2-qwen2-zero3-2-full"))
    read, name = first_weights(config), "layers.0.mlp.down_proj"
    trained = runs[2, TWO[0]][2][f"{name}.weight"]
    assert torch.equal(read(f"{name}.weight", (32, 48), 0, 32 * 48).view(32, 48), trained)
    down = read(f"{name}.lora_A.weight", (3, 48), 0, 3 * 48)
    up = read(f"{name}.lora_B.weight", (32, 3), 0, 32 * 3)
    assert up.abs().sum() == 0 < down.abs().sum()


def test_adapters_in_the_format_of_peft(runs: dict, folder: Path, tmp_path: Path) -> None:
    import peft

    case = ("still", "pipe_zero1", 1, "none")
    adapters.to_peft(folder / "2-still-pipe_zero1-1-none", tmp_path / "adapters")
    base = first("still").state_dict()
    load.write_weights(tmp_path / "base", sgd(case).model, iter(base.items()), None, len(base))
    export.to_hub(tmp_path / "base", tmp_path / "export")
    options = {"trust_remote_code": True, "dtype": torch.float32}
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", **options)
    wrapped = peft.PeftModel.from_pretrained(exported, tmp_path / "adapters")
    # fused queries, keys and values, and up and gate, of two layers
    assert sum(".lora_A." in name for name, _ in wrapped.named_parameters()) == 2 * 4
    wrapped.save_pretrained(tmp_path / "again")
    adapters.from_peft(tmp_path / "again", tmp_path / "base", tmp_path / "merged")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "one")
    load.from_hub(tmp_path / "one", tmp_path / "theirs")
    for folder_of in ("merged", "theirs"):
        for name, weight in checkpoint.read_full_state(tmp_path / folder_of):
            torch.testing.assert_close(weight, runs[2, case][2][name], atol=1e-7, rtol=1e-6)
    with pytest.raises(ValueError, match="the connector learnt as well"):
        adapters.to_peft(folder / "2-qwen2-zero3-2-full", tmp_path / "other")


@pytest.mark.parametrize("ranks", CHAINS)
def test_checkpoints_pass_from_strategy_to_strategy(tmp_path: Path, ranks: int) -> None:
    losses, _, expected = plain(adamw("zero0", len(CHAINS[ranks])))
    names, read = lora.merged(expected, expected.__getitem__, BOTH.alpha)
    runs = [adamw(strategy, len(CHAINS[ranks])) for strategy in CHAINS[ranks]]
    ours, weights = run_ranks(hand_on, ranks, str(tmp_path), runs, timeout=240)[0]
    loss, weight = difference((ours, weights), (losses, {name: read(name) for name in names}))
    assert math.isfinite(loss) and loss <= 1e-5 and weight <= 1e-4
