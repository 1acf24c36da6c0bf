"""Schedules, parameter groups, loss scaling and four training steps against the reference's trainer."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_files import listed, read_json, read_tensors
from golden_models import load_model, read_batch, read_config, to_reference

from molmo_ds.batch import PER_TOKEN, Batch, last_tokens, learnt_rows_of, shifted
from molmo_ds.config import ComponentConfig, OptimConfig, RunConfig
from molmo_ds.engine import build_engine, optim
from molmo_ds.engine.launch import World
from molmo_ds.hub.load import write_weights
from molmo_ds.model.families import molmo_names
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.ranks import run_ranks

PARTS = {"connector": "connector", "vit": "vision", "llm": "text"}
KIND = "d_qwen2"  # the model that the reference trained
WITHOUT_PICTURES = "text_only"  # the reference's text model alone, which is none of ours
GROUPS = "E_optim/param_groups.json"
TRAJECTORY = "E_optim/train_trajectory.json"
DIVISOR = "E_optim/batch_divisor.json"


def optim_config(
    lr: dict[str, float], warmup: dict[str, int], decay: dict[str, float], **others
) -> OptimConfig:
    """Of the reference's numbers, by its names of the components."""
    parts = {
        ours: ComponentConfig(
            lr=lr[theirs], warmup_steps=warmup[theirs], weight_decay=decay.get(theirs)
        )
        for theirs, ours in PARTS.items()
    }
    return OptimConfig(**parts, **others)


def schedule_config(
    scheduler: dict, lr: dict[str, float], decay: dict[str, float], **others
) -> OptimConfig:
    """The same from a `scheduler` section."""
    warmup = {theirs: scheduler[f"{theirs}_t_warmup"] for theirs in PARTS}
    return optim_config(
        lr,
        warmup,
        decay,
        alpha_f=scheduler["alpha_f"],
        t_max=scheduler.get("t_max"),
        warmup_min_lr=scheduler.get("warmup_min_lr"),
        grad_clip_warmup_steps=scheduler.get("grad_clip_warmup_steps") or 0,
        grad_clip_warmup_factor=scheduler.get("grad_clip_warmup_factor") or 1.0,
        **others,
    )


def test_schedules() -> None:
    file = read_json("E_optim/schedules.json")
    settings = {
        name: schedule_config(c["scheduler"], dict(zip(PARTS, c["lr_connector_vit_llm"])), {})
        for name, c in file["configs"].items()
    }
    assert {row["config"] for row in file["rows"]} <= set(settings) and file["rows"]
    for row in file["rows"]:
        config = settings[row["config"]]
        step = row["step"]
        for theirs, ours in PARTS.items():
            assert optim.learning_rate(config, ours, step, row["max_steps"]) == pytest.approx(
                row[theirs], rel=1e-12
            )
        assert optim.norm_limit(config, step) == row["max_grad_norm"]


@pytest.mark.parametrize("kind", [kind for kind in listed(GROUPS) if kind != WITHOUT_PICTURES])
def test_parameter_groups(kind: str) -> None:
    golden = read_json(GROUPS)[kind]
    model = kind.removeprefix("dino_").removesuffix("_lm_head_frozen_default")
    config = read_config(model)
    if kind.startswith("dino"):
        blocks = re.compile(r".*image_vit.*resblocks\.(\d+)\.")
        found = [blocks.match(name) for group in golden for name in group["param_names"]]
        layers = 1 + max(int(match.group(1)) for match in found if match)
        vision = replace(
            config.vision, model_type="dinov2", num_hidden_layers=layers, feature_layers=(-1,)
        )
        config = replace(config, vision=vision)
    decay = {
        group["group_name"].partition("_")[0]: group["weight_decay"]
        for group in golden
        if group["weight_decay"]
    }
    settings = optim_config(
        dict.fromkeys(PARTS, golden[0]["lr"]),
        dict.fromkeys(PARTS, 1),
        decay,
        freeze_embedding="frozen" in kind,
    )
    with torch.device("meta"):
        network = Molmo(config)
    frozen = optim.frozen_names(network, settings)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    place = {
        name: (group["component"], group["weight_decay"])
        for group in optim.parameter_groups(network, settings)
        for name in group["names"]
    }
    keys = {name for group in golden for name in group["param_names"]} | {
        "transformer.wte.embedding"
    }
    used = set()
    for rule in molmo_names.detect(config, keys):
        groups = [g for g in golden if set(rule.theirs) & set(g["param_names"])]
        # the base table; and ViT blocks that the reference keeps but never changes
        if set(rule.ours) <= frozen:
            assert not groups or rule.ours[0].startswith("vision.layers.")
            continue
        assert len(groups) == 1, rule
        part = PARTS[groups[0]["group_name"].partition("_")[0]]
        for name in rule.ours:
            assert place[name] == (part, groups[0]["weight_decay"]), name
            used.add(name)
    assert used == set(place)


def split_rows(batch: Batch) -> list[Batch]:
    """One batch per sequence, with the crops that belong to it; every window lies in one crop."""
    length = batch.input_ids.shape[1]
    owner = last_tokens(batch) // length
    patches = batch.image_masks.shape[1]
    crop = batch.windows.amax(1) // patches
    out = []
    for i in range(len(batch.input_ids)):
        mine = owner == i
        whole = mine[crop]
        places = batch.image_positions[whole]
        assert torch.isin(places // length, torch.tensor([i, -1])).all()
        moved = (mine.cumsum(0) - 1)[crop[whole]] - crop[whole]
        rows = {name: getattr(batch, name)[i : i + 1] for name in PER_TOKEN}
        row = Batch(
            **rows,
            images=batch.images[mine],
            image_masks=batch.image_masks[mine],
            windows=shifted(batch.windows[whole], (moved * patches)[:, None]),
            image_positions=shifted(places, -i * length),
            learnt_rows=learnt_rows_of(rows["loss_weights"]),
        )
        out.append(row)
    return out


def run_config(weights: Path, settings: OptimConfig, **others) -> RunConfig:
    """A run that starts from golden weights."""
    settings = replace(settings, z_loss=read_json(f"A_model/{KIND}/meta.json")["z_loss_scale"])
    base = RunConfig(
        model=read_config(KIND), optim=settings, init_from=str(weights), precision="fp32"
    )
    return replace(base, **others)


def rows_of(name: str) -> int:
    """Sequences of a golden batch."""
    return len(read_batch(KIND, name)[0].input_ids)


@pytest.fixture(scope="session")
def golden_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the model that was trained, as a folder that init_from reads."""
    folder = tmp_path_factory.mktemp("golden") / "weights"
    state = load_model(KIND).state_dict()
    write_weights(folder, read_config(KIND), iter(state.items()), None, len(state))
    return folder


def train_golden(world: World, run: dict, weights: Path) -> list[tuple[dict, dict]]:
    """(metrics, weights under the reference's names) of four steps, through the engine."""
    scheduler = run["scheduler"]
    optimizer = run["optimizer"]
    lr = {part: optimizer[f"{part}_learning_rate"] for part in PARTS}
    decay = {part: optimizer[f"{part}_weight_decay"] for part in PARTS}
    settings = schedule_config(
        scheduler,
        lr,
        decay,
        max_grad_norm=run["trainer"]["max_grad_norm"],
        freeze_embedding=bool(run["frozen"]),
    )
    moments = {
        ours: replace(
            getattr(settings, ours),
            betas=tuple(run["common"][f"{theirs}_betas"]),
            eps=run["common"][f"{theirs}_eps"],
        )
        for theirs, ours in PARTS.items()
    }
    settings = replace(settings, **moments)
    total = rows_of(run["steps"][0]["batch"])
    assert {rows_of(step["batch"]) for step in run["steps"]} == {total}
    micro = min(run["trainer"]["device_train_microbatch_size"], total)
    config = run_config(
        weights, settings, max_steps=run["max_steps"], micro_batch=micro, global_batch=total
    )
    config = replace(config, strategy="ds_configs/zero1.json")
    engine = build_engine(config, world)
    out = []
    for step in run["steps"]:
        batch = read_batch(KIND, step["batch"])[0]
        assert micro in (1, total), f"micro-batches of {micro} of {total} rows"
        values = engine.train_step(split_rows(batch) if micro == 1 else [batch])
        out.append((values, to_reference(KIND, dict(engine.full_state()))))
    return out


@pytest.fixture(scope="session")
def trajectories(golden_weights: Path) -> dict[str, list]:
    """All runs of train_trajectory.json, in one process group."""
    runs = read_json(TRAJECTORY)["runs"]

    def all_runs(world: World) -> dict[str, list]:
        return {name: train_golden(world, run, golden_weights) for name, run in runs.items()}

    return run_ranks(all_runs, 1)[0]


@pytest.mark.parametrize("name", listed(TRAJECTORY, "runs"))
def test_training_steps(trajectories, name: str) -> None:
    run = read_json(TRAJECTORY)["runs"][name]
    start = read_tensors(f"A_model/{KIND}/state_dict.safetensors")
    checked = 0
    for step, (values, weights) in zip(run["steps"], trajectories[name], strict=True):
        metrics = step["metrics"]
        assert values["ce_loss"] == pytest.approx(metrics["train/CrossEntropyLoss"], rel=2e-5)
        assert values["z_loss"] == pytest.approx(metrics["train/ZLoss"], rel=2e-5)
        assert values["accuracy"] == pytest.approx(metrics["train/Accuracy"], abs=1e-6)
        for theirs, ours in PARTS.items():
            norm = metrics[f"optim/{theirs}_grad_norm"]
            assert values[f"grad_norm/{ours}"] == pytest.approx(norm, rel=2e-4), (
                step["global_step"],
                ours,
            )
            assert values[f"lr/{ours}"] == pytest.approx(
                step["lr_used"][f"{theirs}_decay"], rel=1e-12
            )
        total = math.sqrt(sum(values[f"grad_norm/{part}"] ** 2 for part in PARTS.values()))
        assert total == pytest.approx(metrics["optim/total_grad_norm"], rel=2e-4)
        for key, golden in (step["params_after"] or {}).items():
            checked += 1
            flat = weights[key].flatten().double()
            moved = max(step["lr_used"].values()) * step["global_step"]
            # AdamW blows up rounding where the gradient is nothing else: a shift of the keys leaves attention as it is
            tolerance = 1e-2 if key.endswith("wk.bias") else 1e-4
            ours = flat[torch.tensor(golden["idx"])]
            values_there = torch.tensor(golden["val"], dtype=torch.float64)
            torch.testing.assert_close(ours, values_there, atol=tolerance * moved, rtol=1e-6)
            spread = tolerance * moved * len(flat) ** 0.5 * 10
            assert float(flat.sum()) == pytest.approx(golden["sum"], abs=spread, rel=1e-6), key
            assert float((flat**2).sum()) == pytest.approx(golden["sq"], abs=spread, rel=1e-5), key
    assert checked == sum(bool(step["params_after"]) for step in run["steps"]) * len(start) > 0


def batches_of(entries: dict, prefix: str = "") -> list[str]:
    """The batches that entries `PREFIX|batch` or `batch|...` are about."""
    known = read_json(f"A_model/{KIND}/meta.json")["batches"]
    return [
        name
        for name in known
        if any(name in key.split("|") and key.startswith(prefix) for key in entries)
    ]


def gradients_golden(
    world: World, weights: Path, cases: list[tuple[str, int]]
) -> list[tuple[dict, dict]]:
    """(metrics, gradients under the reference's names) of batches, cut into micro-batches of one row or not cut.

    Plain SGD with rate 1 moves a weight by its gradient.
    """
    settings = optim_config(
        dict.fromkeys(PARTS, 1.0),
        dict.fromkeys(PARTS, 0),
        {},
        name="sgd",
        alpha_f=1.0,
        max_grad_norm=0.0,
    )
    settings = replace(settings, freeze_embedding=False)
    start = read_tensors(f"A_model/{KIND}/state_dict.safetensors")
    out = []
    for name, micro in cases:
        batch = read_batch(KIND, name)[0]
        total = len(batch.input_ids)
        micro = min(micro, total)
        assert micro in (1, total), f"micro-batches of {micro} of {total} rows"
        config = run_config(
            weights,
            settings,
            strategy="ds_configs/zero2.json",
            micro_batch=micro,
            global_batch=total,
        )
        engine = build_engine(config, world)
        rows = split_rows(batch) if micro == 1 else [batch]
        values = engine.train_step(rows[world.rank :: world.size])
        after = to_reference(KIND, dict(engine.full_state()))
        out.append((values, {key: start[key].double() - after[key].double() for key in start}))
    return out


def check_gradients(
    result: tuple[dict, dict], ce: float, z: float, total: float, golden: dict
) -> None:
    """Losses and gradients; the subtraction of weights leaves their rounding, 1.2e-7 of each."""
    start = read_tensors(f"A_model/{KIND}/state_dict.safetensors")
    values, gradients = result
    assert values["ce_loss"] == pytest.approx(ce, rel=2e-5)
    assert values["z_loss"] == pytest.approx(z, rel=2e-5)
    norm = math.sqrt(sum(values[f"grad_norm/{part}"] ** 2 for part in PARTS.values()))
    assert norm == pytest.approx(total, rel=2e-5)
    assert golden
    for key, (size, total) in golden.items():
        gradient = gradients[key]
        rounding = 1.2e-7 * float(start[key].norm())
        assert float(gradient.norm()) == pytest.approx(size, rel=1e-4, abs=rounding), key
        assert float(gradient.sum()) == pytest.approx(
            total, abs=3e-7 * gradient.numel() ** 0.5 * 10 + 1e-4
        ), key


def test_one_process_gradients(golden_weights: Path) -> None:
    golden = read_json(DIVISOR)["single_process"]
    keys = [key.split("|microbatch") for key in golden]
    cases = [(name, int(size)) for name, size in keys]
    for there, result in zip(
        golden.values(), run_ranks(gradients_golden, 1, golden_weights, cases)[0], strict=True
    ):
        check_gradients(
            result, there["ce"], there["z"], there["grad_total_norm"], there["grads_norm_sum"]
        )


def test_ranks_average_over_the_global_batch(golden_weights: Path) -> None:
    golden = read_json(DIVISOR)["two_ranks"]
    batches = batches_of(golden["rank0"], "global_batch|")
    assert batches
    results = run_ranks(
        gradients_golden, len(golden), golden_weights, [(name, 1) for name in batches]
    )[0]
    for name, result in zip(batches, results, strict=True):
        there = golden["rank0"][f"global_batch|{name}"]
        ce = there["logged_ce_mean_over_ranks"]
        z = there["logged_z_mean_over_ranks"]
        check_gradients(
            result, ce, z, there["averaged_grad_total_norm"], there["averaged_grads_norm_sum"]
        )
